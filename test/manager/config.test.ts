import { checkConfig, loadConfig, PRESETS } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';

const GB = 1024 ** 3;
const roomy = { cores: 64, memoryBytes: 512 * GB };

describe('loadConfig', () => {
  it('is 5 instances and 10 requests where nothing is set', () => {
    expect(loadConfig({})).toEqual({ poolSize: 5, maxConcurrentRequests: 10 });
  });

  it('reads the variables of the environment', () => {
    const env = {
      PIPELINE_POOL_SIZE: '3',
      MAX_CONCURRENT_REQUESTS: '7',
      PIPELINE_MAX_QUEUE: '0',
      PIPELINE_QUEUE_TIMEOUT_MS: '1000',
      PIPELINE_REQUEST_TIMEOUT_MS: '1800000',
      PIPELINE_ABORT_GRACE_MS: '250',
    };
    expect(loadConfig(env)).toEqual({
      poolSize: 3,
      maxConcurrentRequests: 7,
      maxQueue: 0,
      acquireTimeoutMs: 1_000,
      requestTimeoutMs: 1_800_000,
      abortGraceMs: 250,
    });
  });

  it('reads process.env by default', () => {
    const before = process.env.PIPELINE_POOL_SIZE;
    process.env.PIPELINE_POOL_SIZE = '17';
    try {
      expect(loadConfig().poolSize).toBe(17);
    } finally {
      if (before === undefined) delete process.env.PIPELINE_POOL_SIZE;
      else process.env.PIPELINE_POOL_SIZE = before;
    }
  });

  it('ignores an empty variable', () => {
    expect(loadConfig({ PIPELINE_POOL_SIZE: '', MAX_CONCURRENT_REQUESTS: '  ' })).toEqual(PRESETS.medium);
  });

  it.each(['five', '2.5', '-1', '0', '1e3', '0x10', 'NaN', 'Infinity', '5 instances'])(
    'rejects PIPELINE_POOL_SIZE=%s, naming the variable and the value',
    (written) => {
      const load = () => loadConfig({ PIPELINE_POOL_SIZE: written });
      expect(load).toThrow(RangeError);
      expect(load).toThrow(/PIPELINE_POOL_SIZE/);
      expect(load).toThrow(written);
    },
  );

  it('rejects a duration that no timer can hold', () => {
    expect(() => loadConfig({ PIPELINE_REQUEST_TIMEOUT_MS: '2147483648' })).toThrow(
      /PIPELINE_REQUEST_TIMEOUT_MS/,
    );
  });
});

describe('PRESETS', () => {
  it('has the four that are documented', () => {
    expect(PRESETS).toEqual({
      light: { poolSize: 3, maxConcurrentRequests: 5 },
      medium: { poolSize: 5, maxConcurrentRequests: 10 },
      heavy: { poolSize: 10, maxConcurrentRequests: 20 },
      constrained: { poolSize: 2, maxConcurrentRequests: 3 },
    });
  });

  it.each(Object.entries(PRESETS))('finds nothing unwise in %s on a large machine', (_, preset) => {
    expect(checkConfig(preset, roomy)).toEqual([]);
  });
});

describe('checkConfig', () => {
  const codes = (...args: Parameters<typeof checkConfig>) => checkConfig(...args).map(({ code }) => code);

  it('warns of fewer requests than instances', () => {
    expect(codes({ poolSize: 5, maxConcurrentRequests: 4 }, roomy)).toEqual([
      'fewer-requests-than-instances',
    ]);
    expect(codes({ poolSize: 5, maxConcurrentRequests: 5 }, roomy)).toEqual([]);
  });

  it('warns of more instances than twice the cores', () => {
    expect(codes({ poolSize: 5, maxConcurrentRequests: 5 }, { ...roomy, cores: 2 })).toEqual([
      'more-instances-than-cores',
    ]);
    expect(codes({ poolSize: 4, maxConcurrentRequests: 5 }, { ...roomy, cores: 2 })).toEqual([]);
  });

  it('warns of more instances than the memory holds at half a gigabyte each', () => {
    const small = { ...roomy, memoryBytes: 2 * GB };
    expect(codes({ poolSize: 5, maxConcurrentRequests: 5 }, small)).toEqual(['more-instances-than-memory']);
    expect(codes({ poolSize: 4, maxConcurrentRequests: 5 }, small)).toEqual([]);
    expect(codes({ poolSize: 4, maxConcurrentRequests: 5 }, { ...small, instanceBytes: GB })).toEqual([
      'more-instances-than-memory',
    ]);
  });

  it('includes the remedy', () => {
    const [warning] = checkConfig({ poolSize: 9, maxConcurrentRequests: 9 }, { ...roomy, cores: 4 });
    expect(warning?.message).toContain('Lower PIPELINE_POOL_SIZE to 8');
  });

  it('reads the machine that it runs on where none is given', () => {
    expect(codes({ poolSize: 1_000_000, maxConcurrentRequests: 1_000_000 })).toEqual([
      'more-instances-than-cores',
      'more-instances-than-memory',
    ]);
  });

  it('rejects a wrong or unknown setting', () => {
    expect(() => checkConfig({ poolSize: 0, maxConcurrentRequests: 1 })).toThrow(/`poolSize`.*got 0/);
    expect(() => checkConfig({ poolSize: 1, maxConcurrentRequests: 1, size: 3 } as never)).toThrow(
      /Unknown option `size`/,
    );
    expect(() => checkConfig(PRESETS.light, { cpus: 2 } as never)).toThrow(/Unknown option `cpus`/);
  });
});
