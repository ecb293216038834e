import { readFile } from 'node:fs/promises';
import { LIFECYCLE_EVENTS } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { defaultLevelOf } from '../../src/observability/logging/log-lines.js';
import { METRICS } from '../support/metrics.js';

const guide = () => readFile(new URL('../../docs/observability.md', import.meta.url), 'utf8');

const codesIn = (text: string): string[] => [...text.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code);

describe('the guide', () => {
  it('has every event at its usual level', async () => {
    const rows = [...(await guide()).matchAll(/^\| `(warn|info|debug)` \| (.*) \|$/gm)];
    expect(rows).toHaveLength(3);
    for (const [, level, cell = ''] of rows) {
      const events = codesIn(cell.replace(/, and .*/, ''));
      expect(events).toEqual(LIFECYCLE_EVENTS.filter((event) => defaultLevelOf(event) === level));
    }
  });

  it('has every metric with its labels', async () => {
    const text = await guide();
    const table = text.slice(
      text.indexOf('| metric, after the prefix'),
      text.indexOf('[grafana-dashboard.json]'),
    );
    const rows = [...table.matchAll(/^\| (`.*?) \| (.*?) ?\| /gm)].map(([, names = '', labels = '']) => ({
      names: codesIn(names),
      labels: codesIn(labels),
    }));
    expect(rows.flatMap(({ names }) => names).toSorted()).toEqual(METRICS.map(({ name }) => name).toSorted());
    for (const { names, labels } of rows) {
      const metrics = METRICS.filter(({ name }) => names.includes(name));
      expect(new Set(metrics.flatMap((metric) => metric.labels))).toEqual(new Set(labels));
    }
  });
});
