/**
 * The script of the page, written as it is sent, without a build step. It creates elements and text nodes and never parses
 * markup, so names of gates and tasks cannot inject any.
 */
export const LIVE_PAGE_SCRIPT = `
'use strict';
(() => {
  const byId = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const say = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  const look = (element, className) => {
    if (element.className !== className) element.className = className;
  };
  const makeBar = () => {
    const bar = make('div', 'bar');
    bar.append(make('i'));
    return bar;
  };
  const fill = (bar, percent) => {
    bar.firstChild.style.width = Math.min(100, percent) + '%';
  };
  const plural = (n, one, many) => n + ' ' + (n === 1 ? one : many);
  const shown = (ms) => {
    if (ms < 950) return Math.round(ms) + ' ms';
    if (ms < 9950) return (ms / 1000).toFixed(1) + ' s';
    const s = Math.round(ms / 1000);
    if (s < 60) return s + ' s';
    if (s < 3600) return Math.floor(s / 60) + ' min ' + (s % 60) + ' s';
    const min = Math.floor(s / 60);
    if (min < 1440) return Math.floor(min / 60) + ' h ' + (min % 60) + ' min';
    return plural(Math.floor(min / 1440), 'day', 'days') + ' ' + (Math.floor(min / 60) % 24) + ' h';
  };
  const brief = (n) => (n >= 10000 ? (n / 1000).toFixed(0) + ' k' : n >= 100 || n === 0 ? n.toFixed(0) : n.toFixed(1));
  const figure = (amount) => (+amount.toPrecision(3)).toLocaleString('en', { maximumFractionDigits: 9 });

  // Of all processes that share a limit.
  const fleetText = (fleet) => {
    if (!fleet) return '';
    if (!fleet.available) return 'The server of the shared limits cannot be reached';
    const all = plural(fleet.members, 'process', 'processes') + ' together: ';
    const used = fleet.maxConcurrent === undefined ? '' : fleet.active + ' of ' + fleet.maxConcurrent + ' in use, ';
    return all + used + fleet.queued + ' waiting' + (fleet.frozen ? ', nothing granted after a loss of data' : '');
  };

  // Keeps one child per item, identified by its key.
  const list = (container, items, keyOf, create, update) => {
    const known = new Map([...container.children].map((child) => [child.dataset.key, child]));
    items.forEach((item, i) => {
      const key = String(keyOf(item, i));
      let child = known.get(key);
      if (child === undefined) {
        child = create(item);
        child.dataset.key = key;
      }
      known.delete(key);
      if (container.children[i] !== child) container.insertBefore(child, container.children[i] || null);
      update(child, item);
    });
    for (const child of known.values()) child.remove();
  };

  const KEEP_MS = 120000;
  const RATE_MS = 30000;
  let history = [];
  const since = (windowMs) => {
    const last = history[history.length - 1];
    return history.find((state) => last.atMs - state.atMs <= windowMs) || last;
  };

  const STATUS = { healthy: 'good', degraded: 'wait', draining: 'wait', unhealthy: 'bad' };
  const drawHead = (state) => {
    say(byId('name'), state.name);
    document.title = state.requests.active + '/' + state.requests.limit + ' · ' + state.name;
    look(byId('status'), 'pill ' + STATUS[state.status]);
    say(byId('status'), state.status);
    say(byId('uptime'), 'up ' + shown(state.uptimeMs));
    say(byId('reasons'), state.reasons.join('. '));
  };

  const drawTiles = (state) => {
    const then = since(RATE_MS);
    const minutes = (state.atMs - then.atMs) / 60000;
    const { requests, pool } = state;
    say(byId('active'), String(requests.active));
    say(byId('limit'), ' of ' + requests.limit);
    fill(byId('active-bar'), (100 * requests.active) / requests.limit);
    const together = fleetText(requests.fleet);
    say(byId('active-note'), plural(pool.leased, 'has an instance', 'have an instance') + (together && ' · ' + together));
    const waiting = requests.queued + pool.queued;
    say(byId('waiting'), String(waiting));
    fill(byId('waiting-bar'), (100 * waiting) / Math.max(requests.limit, waiting));
    say(byId('waiting-note'), waiting === 0 ? 'none' : requests.queued + ' for admission, ' + pool.queued + ' for an instance');
    const done = requests.ok - then.requests.ok;
    const failed = requests.failed - then.requests.failed;
    const rejected = requests.rejected - then.requests.rejected;
    say(byId('rate'), minutes > 0 ? brief((done + failed) / minutes) : '–');
    say(byId('rate-note'), failed + rejected === 0 ? 'none failed' : failed + ' failed, ' + rejected + ' rejected');
    const started = requests.started - then.requests.started;
    say(byId('wait'), started > 0 ? shown((requests.waitMs - then.requests.waitMs) / started) : '–');
    say(byId('wait-note'), started > 0 ? plural(started, 'request', 'requests') + ' started in ' + Math.round(60 * minutes) + ' s' : 'none started recently');
  };

  const drawDiagnosis = (state) => {
    const [worst, ...others] = state.diagnosis.findings;
    look(byId('diagnosis'), worst ? 'card diagnosis found' : 'card diagnosis');
    say(byId('mark'), worst ? '!' : '✓');
    say(byId('what'), worst ? worst.message + '.' : 'Nothing delays requests.');
    const remedy = byId('remedy');
    const text = worst ? worst.remedy : '';
    if (remedy.dataset.text !== text) {
      remedy.dataset.text = text;
      const tick = String.fromCharCode(96);
      remedy.replaceChildren(...text.split(tick).map((part, i) => (i % 2 ? make('code', '', part) : document.createTextNode(part))));
    }
    byId('others').hidden = others.length === 0;
    list(byId('others'), others, (finding) => finding.code + finding.source, () => make('li'), (item, finding) => say(item, finding.message + '.'));
  };

  const WORD = { running: 'running', idle: 'idle', creating: 'being created', empty: 'free', other: 'live' };
  const drawSlots = (state) => {
    const { pool } = state;
    const places = [];
    for (const slot of pool.slots) places[slot.place] = slot;
    let unknown = pool.live - pool.slots.length;
    const count = Math.min(400, Math.max(pool.size, places.length));
    const slots = Array.from({ length: count }, (_, place) => {
      if (places[place]) return places[place];
      return unknown-- > 0 ? { place, state: 'other' } : { place, state: 'empty' };
    });
    say(byId('slots-note'), pool.leased + ' of ' + pool.size + ' in use');
    list(byId('slots'), slots, (slot) => slot.place, () => {
      const tile = make('div');
      tile.append(make('b'), make('span'), make('em'));
      return tile;
    }, (tile, slot) => {
      const [number, word, more] = tile.children;
      look(tile, 'slot ' + slot.state);
      say(number, slot.instanceId === undefined ? ' ' : 'instance ' + slot.instanceId);
      say(word, WORD[slot.state]);
      const { budget, taskId } = slot;
      const spent = budget ? ' · ' + figure(budget.spent) + ' of ' + figure(budget.limit) + ' ' + budget.meter : '';
      say(more, slot.ageMs === undefined ? '' : shown(slot.ageMs) + spent + (taskId ? ' · ' + taskId : ''));
      // What does not fit into the tile.
      tile.title = more.textContent;
    });
  };

  const drawChart = (state) => {
    const end = state.atMs;
    const top = 1.2 * Math.max(4, ...history.map(({ requests, pool }) => Math.max(requests.limit, requests.active, requests.queued + pool.queued)));
    const x = (atMs) => (1000 * (1 - (end - atMs) / KEEP_MS)).toFixed(1);
    const y = (n) => (100 * (1 - n / top)).toFixed(2);
    const line = (of) => history.map((each, i) => (i ? 'L' : 'M') + x(each.atMs) + ' ' + y(of(each))).join('');
    const active = line(({ requests }) => requests.active);
    byId('chart-active').setAttribute('d', active);
    byId('chart-area').setAttribute('d', active + 'L1000 100L' + x(history[0].atMs) + ' 100Z');
    byId('chart-queued').setAttribute('d', line(({ requests, pool }) => requests.queued + pool.queued));
    byId('chart-limit').setAttribute('d', 'M0 ' + y(state.requests.limit) + 'L1000 ' + y(state.requests.limit));
    const label = byId('chart-label');
    label.style.top = y(state.requests.limit) + '%';
    say(label, 'at most ' + state.requests.limit);
  };

  const KEY_LOOK = { 'half-open': 'wait', cooldown: 'wait cooldown', exhausted: 'bad', quarantined: 'bad' };
  const makeGate = () => {
    const card = make('section', 'card gate');
    const head = make('div', 'top');
    const title = make('h3');
    title.append(make('span'), make('small'));
    head.append(title, make('span', 'pill'));
    const figures = make('dl');
    for (const name of ['running', 'waiting', 'a minute', 'retried']) {
      const pair = make('div');
      pair.append(make('dt', '', name), make('dd', '', '–'));
      figures.append(pair);
    }
    const keys = make('div', 'keys');
    keys.append(make('p', '', 'Capacity left per key'), make('div'));
    card.append(head, makeBar(), figures, keys, make('p', 'fleet'));
    return card;
  };
  const makeKey = () => {
    const row = make('div', 'key');
    const bar = makeBar();
    bar.title = 'capacity left in its rate windows';
    row.append(make('span', 'label'), bar, make('span', 'state'));
    return row;
  };
  const drawKey = (row, { key, state, free }) => {
    const [label, bar, word] = row.children;
    look(row, 'key ' + (KEY_LOOK[state] || ''));
    say(label, key);
    fill(bar, 100 * free);
    say(word, state);
  };
  const drawGate = (card, gate) => {
    const [head, bar, figures, keys, fleet] = card.children;
    const [title, pill] = head.children;
    const [name, note] = title.children;
    say(name, gate.name);
    const cached = gate.calls > 0 ? Math.round((100 * gate.cached) / gate.calls) : 0;
    say(note, cached > 0 ? cached + ' % cached' : '');

    const free = Math.max(0, ...gate.keys.map((key) => (key.state === 'ready' || key.state === 'half-open' ? key.free : 0)));
    const used = gate.limit === null ? 1 - free : gate.running / gate.limit;
    const [word, kind] = gate.retryAfterMs === null ? ['no key left', 'bad']
      : gate.retryAfterMs > 0 ? ['cooldown ' + shown(gate.retryAfterMs), 'wait']
      : gate.fleet && !gate.fleet.available ? ['limits unavailable', 'wait']
      : used >= 1 && gate.queued > 0 ? ['at its limit', 'wait'] : ['open', 'good'];
    say(pill, word);
    look(pill, 'pill ' + kind);
    fill(bar, 100 * used);
    look(bar, used >= 1 ? 'bar wait' : 'bar');
    bar.title = gate.limit === null ? 'share of the rate window in use' : 'share of the calls allowed at once';

    const last = history[history.length - 1];
    const then = since(RATE_MS);
    const before = then.gates.find(({ name }) => name === gate.name) || gate;
    const minutes = (last.atMs - then.atMs) / 60000;
    const values = [
      gate.limit === null ? String(gate.running) : gate.running + ' of ' + gate.limit,
      String(gate.queued + gate.backingOff),
      minutes > 0 ? brief((gate.calls - before.calls) / minutes) : '–',
      gate.attempts === before.attempts ? '0 %' : Math.round((100 * (gate.retries - before.retries)) / (gate.attempts - before.attempts)) + ' %',
    ];
    values.forEach((value, i) => say(figures.children[i].children[1], value));

    const named = gate.keys.filter(({ key, state }) => key !== 'service' || state !== 'ready');
    keys.hidden = named.length === 0;
    list(keys.children[1], named, ({ key }) => key, makeKey, drawKey);
    say(fleet, fleetText(gate.fleet));
    fleet.hidden = !gate.fleet;
  };
  const makeRow = () => {
    const row = make('div', 'tenant');
    row.append(make('b'), makeBar(), make('span'), make('em'));
    return row;
  };
  const drawTenants = (state) => {
    byId('tenants-card').hidden = state.tenants.length === 0;
    const before = new Map(since(RATE_MS).tenants.map((tenant) => [tenant.name, tenant.runMs]));
    const work = ({ name, runMs }) => Math.max(0, runMs - (before.get(name) || 0));
    const all = state.tenants.reduce((sum, tenant) => sum + work(tenant), 0);
    const rows = [...state.tenants].sort((a, b) => work(b) - work(a) || b.running + b.queued - a.running - a.queued);
    list(byId('tenants'), rows, ({ name }) => name, makeRow, (row, tenant) => {
      const share = all > 0 ? Math.round((100 * work(tenant)) / all) : 0;
      const [name, bar, percent, more] = row.children;
      say(name, tenant.name);
      row.title = tenant.name;
      fill(bar, share);
      say(percent, share + ' %');
      const spent = tenant.spent.map(([meter, amount]) => figure(amount) + ' ' + meter).join(', ');
      say(more, tenant.running + ' running, ' + tenant.queued + ' waiting' + (spent && ' · ' + spent));
      more.title = spent && 'spent since the page was opened: ' + spent;
    });
  };
  const drawBudgets = (state) => {
    byId('budgets-card').hidden = state.budgets.length === 0;
    const before = new Map(since(RATE_MS).budgets.map(({ meter, rejected }) => [meter, rejected]));
    list(byId('budgets'), state.budgets, ({ meter }) => meter, makeRow, (row, budget) => {
      const { meter, limit, spent, reserved, left } = budget;
      const used = limit > 0 ? Math.round(100 * (1 - left / limit)) : 0;
      const rejected = budget.rejected - (before.get(meter) || 0);
      const [name, bar, percent, more] = row.children;
      say(name, meter);
      row.title = meter;
      fill(bar, used);
      look(bar, rejected > 0 || used >= 90 ? 'bar wait' : 'bar');
      say(percent, used + ' %');
      say(more, figure(spent) + ' spent, ' + figure(reserved) + ' reserved, ' + figure(left) + ' left of ' + figure(limit) + (rejected > 0 ? ' · ' + plural(rejected, 'call', 'calls') + ' rejected' : ''));
    });
  };
  const drawGates = (state) => {
    byId('no-gates').hidden = state.gates.length > 0;
    list(byId('gates'), state.gates, ({ name }) => name, makeGate, drawGate);
  };

  const draw = (state) => {
    const last = history[history.length - 1];
    // Another process responds now; its totals start again.
    if (last && (state.atMs < last.atMs || state.uptimeMs < last.uptimeMs)) history = [];
    history.push(state);
    history = history.filter(({ atMs }) => state.atMs - atMs <= KEEP_MS);
    drawHead(state);
    drawTiles(state);
    drawDiagnosis(state);
    drawSlots(state);
    drawChart(state);
    drawTenants(state);
    drawBudgets(state);
    drawGates(state);
  };

  const connection = (word, stale) => {
    say(byId('connection'), word);
    document.body.classList.toggle('stale', stale);
  };
  const url = new URL(location.href);
  url.searchParams.set('watcher', Math.random().toString(36).slice(2) + Math.random().toString(36).slice(2));
  let confirmedMs = 0;
  // Shows the server that the updates are read: it cannot see that by itself.
  const confirm = () => {
    if (Date.now() - confirmedMs < 4000) return;
    confirmedMs = Date.now();
    fetch(url, { headers: { accept: 'text/plain' } }).catch(() => {});
  };
  const watch = () => {
    const source = new EventSource(url);
    source.onmessage = (event) => {
      confirm();
      connection('live', false);
      draw(JSON.parse(event.data));
    };
    source.onerror = () => {
      connection('no connection', true);
      // A rejection closes the source for good: try again later.
      if (source.readyState === EventSource.CLOSED) setTimeout(watch, 10000);
    };
  };
  watch();
})();
`;
