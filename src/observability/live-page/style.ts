/** The style sheet of the page: two palettes, and one layout of one or several columns. */
export const LIVE_PAGE_STYLE = `
:root{
  color-scheme:light dark;
  --paper:#f6f7f9;--card:#fff;--line:#e2e6ed;--ink:#18202f;--muted:#5c6779;--faint:#647085;
  --run:#2b6be0;--run-soft:#dfe9fd;--run-ink:#1b4faf;
  --wait:#8f5700;--wait-soft:#fdf0d8;
  --good:#187445;--good-soft:#dcf3e6;
  --bad:#bf2b2a;--bad-soft:#fde3e1;
  --make:#6f51c4;--make-soft:#ebe5fb;
  --empty:#eef1f5;
}
@media (prefers-color-scheme:dark){:root{
  --paper:#0d1219;--card:#151c27;--line:#263041;--ink:#e9edf5;--muted:#9ba6ba;--faint:#8793aa;
  --run:#6ea3ff;--run-soft:#1b3058;--run-ink:#b9d2ff;
  --wait:#f3b548;--wait-soft:#3d2e10;
  --good:#52c98c;--good-soft:#12372a;
  --bad:#ff7a70;--bad-soft:#46201f;
  --make:#b09af6;--make-soft:#2c2450;
  --empty:#1a222f;
}}
*{box-sizing:border-box}
[hidden]{display:none!important}
body{margin:0;background:var(--paper);color:var(--ink);
  font:15px/1.45 Inter,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
  font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{display:flex;flex-wrap:wrap;align-items:center;gap:6px 14px;padding-top:22px;padding-bottom:14px}
h1{font-size:20px;line-height:1.2;margin:0;font-weight:650;overflow-wrap:anywhere}
h2{font-size:13px;font-weight:600;margin:0 0 12px;color:var(--muted);display:flex;gap:8px;align-items:baseline;flex-wrap:wrap}
h2 span{font-weight:400;color:var(--faint)}
h3{font-size:15px;margin:0;font-weight:600;overflow-wrap:anywhere}
h3 small{font-size:13px;font-weight:400;color:var(--muted);white-space:nowrap;margin-left:6px}
.spring{flex:1}
.quiet{color:var(--muted);font-size:13px}
.pill{display:inline-flex;align-items:center;gap:6px;border-radius:99px;padding:2px 10px;font-size:13px;font-weight:600;
  background:var(--empty);color:var(--muted);white-space:nowrap}
.pill::before{content:"";width:8px;height:8px;border-radius:50%;background:currentColor}
.pill.good{background:var(--good-soft);color:var(--good)}
.pill.wait{background:var(--wait-soft);color:var(--wait)}
.pill.bad{background:var(--bad-soft);color:var(--bad)}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px}
main{display:grid;gap:14px;grid-template-columns:repeat(12,minmax(0,1fr))}
main>*{grid-column:1/-1}
.tiles{display:grid;gap:14px;grid-template-columns:repeat(4,minmax(0,1fr))}
.tile .name{font-size:13px;color:var(--muted)}
.tile .value{font-size:30px;line-height:1.15;font-weight:650;letter-spacing:-.01em;margin-top:2px;white-space:nowrap}
.tile .value small{font-size:15px;font-weight:500;color:var(--faint);letter-spacing:0}
.tile .note{font-size:13px;color:var(--muted);min-height:1.45em}
.bar{height:6px;border-radius:3px;background:var(--empty);overflow:hidden;margin:8px 0 6px}
.bar i{display:block;height:100%;width:0;background:var(--run);border-radius:3px;transition:width .4s}
.bar.wait i{background:var(--wait)}
.bar.none{background:none}
.diagnosis{display:flex;gap:12px;align-items:flex-start}
.diagnosis .mark{flex:none;width:26px;height:26px;border-radius:50%;display:grid;place-items:center;font-weight:700;font-size:14px;
  background:var(--good-soft);color:var(--good)}
.diagnosis.found .mark{background:var(--wait-soft);color:var(--wait)}
.diagnosis p{margin:2px 0 0}
.diagnosis .what{font-weight:600}
.diagnosis .remedy{color:var(--muted);max-width:80ch}
.diagnosis ul{margin:8px 0 0;padding:8px 0 0;border-top:1px solid var(--line);list-style:none;color:var(--muted);font-size:14px}
.diagnosis li{padding:2px 0}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--empty);padding:1px 4px;border-radius:4px}
.half-b{display:flex;flex-direction:column}
.chart{position:relative;flex:1;min-height:150px}
.chart svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.chart .grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.chart .area{fill:var(--run-soft)}
.chart .active{fill:none;stroke:var(--run);stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.chart .queued{fill:none;stroke:var(--wait);stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-dasharray:5 3}
.chart .limit{stroke:var(--faint);stroke-width:1;vector-effect:non-scaling-stroke;stroke-dasharray:2 4}
.chart b{position:absolute;left:0;font-size:12px;font-weight:400;color:var(--faint);transform:translateY(-105%)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--muted);margin-top:8px}
.legend i{display:inline-block;width:18px;height:0;border-top:2px solid var(--run);vertical-align:middle;margin-right:6px}
.legend i.queued{border-top:2px dashed var(--wait)}
.slots{display:grid;gap:8px;grid-template-columns:repeat(auto-fill,minmax(112px,1fr))}
.slot{border-radius:9px;padding:8px 10px;min-height:62px;background:var(--empty);border:1px solid transparent;min-width:0}
.slot b{font-size:12px;font-weight:500;color:var(--muted);display:block}
.slot span{display:block;font-weight:600;font-size:14px;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.slot em{display:block;font-style:normal;font-size:12px;color:var(--muted);white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.slot.running{background:var(--run-soft);border-color:var(--run)}
.slot.running span{color:var(--run-ink)}
.slot.creating{background:var(--make-soft);border:1px dashed var(--make)}
.slot.creating span{color:var(--make)}
.slot.idle{background:var(--card);border-color:var(--line)}
.slot.empty{background:none;border:1px dashed var(--line)}
.slot.empty span{color:var(--faint);font-weight:400}
.tenants{display:grid;gap:6px}
.tenant{display:grid;grid-template-columns:minmax(80px,2fr) minmax(60px,3fr) 48px minmax(130px,5fr);gap:2px 10px;align-items:center;font-size:14px}
.tenant b{font-weight:600;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.tenant .bar{margin:0}
.tenant em{font-style:normal;color:var(--muted);overflow-wrap:anywhere}
.gates{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(256px,1fr))}
.gate .top{display:flex;gap:10px;align-items:center;justify-content:space-between}
.gate dl{display:grid;grid-template-columns:minmax(0,1.35fr) minmax(0,1fr) minmax(0,1.1fr) minmax(0,1fr);gap:8px;margin:10px 0 0}
.gate dt{font-size:12px;color:var(--muted);white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.gate dd{margin:0;font-weight:600;font-size:15px;white-space:nowrap}
.gate .fleet{margin:9px 0 0;font-size:13px;color:var(--muted)}
.keys{margin-top:12px;padding-top:9px;border-top:1px solid var(--line)}
.keys p{margin:0 0 4px;font-size:12px;color:var(--muted)}
.keys>div{display:grid;gap:4px}
.key{display:grid;grid-template-columns:minmax(64px,auto) 1fr auto;gap:10px;align-items:center;font-size:13px}
.key .label{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.key .bar{margin:0}
.key .bar i{background:var(--good)}
.key.bad .bar,.key.cooldown .bar{visibility:hidden}
.key .state{color:var(--muted)}
.key.bad .state{color:var(--bad);font-weight:600}
.key.wait .state{color:var(--wait);font-weight:600}
footer{padding-top:18px;padding-bottom:28px;color:var(--faint);font-size:13px}
body.stale main{opacity:.55}
@media (min-width:900px){.half-a{grid-column:span 5}.half-b{grid-column:span 7}}
@media (max-width:720px){
  .tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}
  main{gap:10px}main,header,footer{padding-left:14px;padding-right:14px}
  .card{padding:13px}.tile .value{font-size:25px}
  .slots{grid-template-columns:repeat(auto-fill,minmax(94px,1fr))}
  .gates{grid-template-columns:minmax(0,1fr);gap:10px}
  .tenant{grid-template-columns:minmax(80px,1fr) minmax(60px,2fr) 48px}.tenant em{grid-column:1/-1}
}
@media (prefers-reduced-motion:reduce){.bar i{transition:none}}
`;
