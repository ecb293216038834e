import { describe, expect, it } from 'vitest';
import { type PermitIssuer, ReadyPermit } from '../../src/limiter/permit.js';
import { endOf, PlainPermit } from '../../src/limiter/run-end.js';
import { standInFor } from '../../src/limiter/runner.js';

describe('The end of a run', () => {
  it('keeps nothing of a run that is over', () => {
    const permit = new ReadyPermit({ takeBack: () => {}, abandon: () => {} }, 1, undefined);
    const end = endOf(permit);
    expect(end.permit).toBe(permit);
    end.finish('ok');
    expect(end.permit).toBeUndefined();
  });

  it('counts its turns on past the largest small number, and stays sure whose permit is whose', () => {
    let back = 0;
    const issuer: PermitIssuer = { takeBack: () => back++, abandon: () => {} };
    const standIn = standInFor(issuer);
    const end = endOf(standIn);
    end.turn = 2 ** 31 - 1;
    const last = new PlainPermit(end);
    end.finish('ok');
    expect(back).toBe(1);

    expect(endOf(standIn)).toBe(end);
    const next = new PlainPermit(end);
    last.release();
    expect(back).toBe(1);
    next.release();
    next.release();
    end.finish('ok');
    end.finish('ok');
    expect(back).toBe(2);
    expect(end.turn).toBe(-(2 ** 31) + 2);
  });
});
