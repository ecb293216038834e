import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { WhenUnavailable } from 'pipeline-pool/redis';
import { until } from '../../support/promises.js';
import { bundleForFork } from './bundle.js';
import type { ClientName, ClientSettings } from './clients.js';

/** What a member process is started with. */
export interface MemberConfig {
  readonly library: ClientName;
  readonly port: number;
  readonly name: string;
  readonly leaseMs: number;
  readonly maxConcurrent: number;
  /** Holders and waiters at a time. */
  readonly loops: number;
  /** The mean time for which it holds a permit. */
  readonly holdMs: number;
  readonly whenUnavailable: WhenUnavailable;
  readonly client?: ClientSettings;
  readonly log: string;
}

export interface Member {
  readonly process: ChildProcess;
  readonly log: string;
  killedAt?: bigint;
}

const nowNs = (): bigint => process.hrtime.bigint();
/** Math.max takes no bigint. */
function later(a: bigint, b: bigint): bigint {
  return [a, b].sort((x, y) => Number(x - y))[1] as bigint;
}

const LIBRARIES: readonly ClientName[] = ['node-redis 6', 'ioredis 6', 'node-redis 5', 'ioredis 5'];

let bundle: Promise<string> | undefined;
const memberProgram = (): Promise<string> => {
  bundle ??= bundleForFork('test/redis/support/member-process.ts');
  return bundle;
};

/** Processes that share one limit, and what a referee says of it. */
export class Fleet implements AsyncDisposable {
  readonly members: Member[] = [];
  readonly #folder = mkdtempSync(join(tmpdir(), 'pipeline-pool-fleet-'));
  readonly #config: Omit<MemberConfig, 'log' | 'library'> & { readonly libraries?: readonly ClientName[] };

  constructor(
    config: Pick<MemberConfig, 'port' | 'name'> &
      Partial<MemberConfig> & { readonly libraries?: readonly ClientName[] },
  ) {
    this.#config = {
      leaseMs: 1_000,
      maxConcurrent: 5,
      loops: 2,
      holdMs: 60,
      whenUnavailable: 'wait',
      ...config,
    };
  }

  get name(): string {
    return this.#config.name;
  }

  get limit(): number {
    return this.#config.maxConcurrent;
  }

  /** Starts `count` more members, and waits until they run. */
  async start(count: number, env: Record<string, string> = {}): Promise<Member[]> {
    const program = await memberProgram();
    const started = Array.from({ length: count }, () => {
      const index = this.members.length;
      const log = join(this.#folder, `${index}.log`);
      const libraries = this.#config.libraries ?? LIBRARIES;
      const config = { ...this.#config, library: libraries[index % libraries.length], log };
      const child = fork(program, {
        env: { ...process.env, MEMBER: JSON.stringify(config), ...env },
        execArgv: [],
        stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      });
      const member = { process: child, log };
      this.members.push(member);
      return member;
    });
    await Promise.all(started.map(({ process }) => new Promise((ready) => process.once('message', ready))));
    return started;
  }

  kill(member: Member): void {
    member.process.kill('SIGKILL');
    member.killedAt = nowNs();
  }

  /** Lets all members finish what they hold, and waits for their end. Returns the codes of those that were not killed. */
  async finish(): Promise<(number | null)[]> {
    const rest = this.members.filter(({ killedAt }) => killedAt === undefined);
    return Promise.all(
      rest.map(
        ({ process }) =>
          new Promise<number | null>((ended) => {
            if (process.exitCode !== null) ended(process.exitCode);
            process.once('exit', (code) => ended(code));
            if (process.connected) process.send({ type: 'finish' });
          }),
      ),
    );
  }

  /** The most that were inside at once, by the referee's count. */
  peak(): number {
    return Math.max(0, ...this.#counts().map(({ count }) => count));
  }

  /** Waits until all permits have been in use at a moment after `since`. */
  full(since = 0n): Promise<void> {
    return until(() =>
      this.#counts().some(({ count }, index, all) => {
        const end = all[index + 1]?.at;
        return count >= this.limit && end !== undefined && end > since;
      }),
    );
  }

  /** Grants between two moments. */
  grants(from = 0n, until = BigInt(Number.MAX_SAFE_INTEGER) * 1_000n): number {
    return this.#lines().filter(({ kind, at }) => kind === 'enter' && at >= from && at < until).length;
  }

  /** When each member wrote this. */
  times(kind: string, id?: string): bigint[] {
    return this.#lines()
      .filter((line) => line.kind === kind && (id === undefined || line.id === id))
      .map(({ at }) => at);
  }

  /** What ended a process, or was rejected. */
  errors(kind: 'fatal' | 'rejected'): string[] {
    return [
      ...new Set(
        this.#lines()
          .filter((line) => line.kind === kind)
          .map(({ id }) => id),
      ),
    ];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      this.members.map(async ({ process }) => {
        if (process.exitCode !== null || process.signalCode !== null) return;
        const ended = once(process, 'exit');
        process.kill('SIGKILL');
        await ended;
      }),
    );
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #lines(): { member: Member; at: bigint; kind: string; id: string }[] {
    return this.members.flatMap((member) => {
      let text = '';
      try {
        text = readFileSync(member.log, 'utf8');
      } catch {
        // It ended before it wrote anything.
      }
      return text
        .split('\n')
        .filter((line) => line.endsWith('') && line.split(' ').length >= 3)
        .map((line) => {
          const [at = '0', kind = '', ...id] = line.split(' ');
          return { member, at: BigInt(at), kind, id: id.join(' ') };
        });
    });
  }

  /**
   * How many were inside, as it changed. A holder is inside from its entry to its exit or its death; one that was stopped,
   * until its lease had expired, and again from its first step after that.
   */
  #counts(): { at: bigint; count: number }[] {
    const changes: { at: bigint; by: number }[] = [];
    const { leaseMs, whenUnavailable } = this.#config;
    // With a share of its own, a member holds permits without a lease.
    const leaseNs = whenUnavailable === 'local' ? 1n << 60n : BigInt(leaseMs) * 1_000_000n;
    const end = nowNs();
    const lines = this.#lines();
    for (const member of this.members) {
      const own = lines.filter((line) => line.member === member);
      const renewals = own.filter(({ kind }) => kind === 'renewed').map(({ at }) => at);
      const leaseEndAt = (at: bigint): bigint => {
        let last = 0n;
        for (const renewal of renewals) if (renewal <= at && renewal > last) last = renewal;
        return last + leaseNs;
      };
      const insideSince = new Map<string, bigint>();
      for (const { kind, id, at } of own) {
        if (kind !== 'enter' && kind !== 'step' && kind !== 'exit') continue;
        const since = insideSince.get(id);
        if (since !== undefined) {
          const leaseEnd = leaseEndAt(since);
          changes.push({ at: since, by: 1 }, { at: at < leaseEnd ? at : later(leaseEnd, since), by: -1 });
        }
        if (kind === 'exit') insideSince.delete(id);
        else insideSince.set(id, at);
      }
      for (const since of insideSince.values()) {
        const died = member.killedAt ?? end;
        changes.push({ at: since, by: 1 }, { at: later(died, since), by: -1 });
      }
    }
    changes.sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : a.by - b.by));
    let count = 0;
    return changes.map(({ at, by }) => {
      count += by;
      return { at, count };
    });
  }
}
