import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { beforeAll, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNKS, type Session, TrackedDisk } from './tracked-disk.js';

const chunk = fc.nat(CHUNKS - 1);

/** What can happen to an image and its sessions. */
const step = fc.oneof(
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('write' as const), chunk }) },
  // Another file of that name with the times of the old one, as a restore makes it; with a change or without.
  fc.record({ kind: fc.constant('replace' as const), chunk: fc.option(chunk) }),
  // The times set back after a change, as far as a program can.
  fc.record({ kind: fc.constant('set back' as const), chunk }),
  fc.record({ kind: fc.constant('session' as const) }),
  // In the same moment as the last one, as far as the clock tells.
  fc.record({ kind: fc.constant('session at once' as const) }),
  fc.record({ kind: fc.constant('short session' as const) }),
  fc.record({ kind: fc.constant('killed' as const), chunk }),
  fc.record({ kind: fc.constant('written meanwhile' as const), chunk }),
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

/** What backup programs have seen so far. */
class Seen {
  #last: Session | undefined;
  /** Whether nobody has seen anything else since. */
  #undisturbed = false;
  readonly #latest = new Map<string, number>();

  /** Throws if the session breaks the stat contract. */
  check(session: Session): void {
    const before = this.#last?.sums.split('\n') ?? [];
    const now = session.sums.split('\n');
    [...session.stats].forEach(([name, line], number) => {
      const mtime = Number(line.split(' ')[2]);
      if (before[number] !== now[number])
        expect(mtime, `${name} changed`).toBeGreaterThan(this.#latest.get(name) ?? 0);
      else if (this.#undisturbed) expect(line).toBe(this.#last!.stats.get(name));
      this.#latest.set(name, Math.max(mtime, this.#latest.get(name) ?? 0));
    });
    this.#last = session;
    this.#undisturbed = true;
  }

  disturb(): void {
    this.#undisturbed = false;
  }
}

async function mounted(disk: TrackedDisk, work: () => void | Promise<void>): Promise<void> {
  const { exitCode, stderr } = await disk.chunkmount.run(disk.given(), disk.clock());
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
  await work();
  await disk.chunkmount.run(['cleanup', '--name=demo']);
}

function replaced(disk: TrackedDisk, changed: number | null): void {
  const { atime, mtime } = fs.statSync(disk.image);
  fs.copyFileSync(disk.image, `${disk.image}.new`);
  fs.renameSync(`${disk.image}.new`, disk.image);
  if (changed !== null) disk.change(changed);
  fs.utimesSync(disk.image, atime, mtime);
}

async function take(given: Step, disk: TrackedDisk, seen: Seen): Promise<void> {
  switch (given.kind) {
    case 'write':
      return disk.change(given.chunk);
    case 'replace':
      return replaced(disk, given.chunk);
    case 'set back': {
      const { atime, mtime } = fs.statSync(disk.image);
      disk.change(given.chunk);
      return fs.utimesSync(disk.image, atime, mtime);
    }
    case 'session':
      return seen.check(await disk.good());
    case 'session at once':
      return seen.check(await disk.good([], { step: false }));
    case 'short session':
      seen.disturb();
      return mounted(disk, () => {});
    case 'killed':
      seen.disturb();
      return mounted(disk, () => {
        const tree = disk.chunkmount.tree('demo');
        fs.statSync(path.join(tree, 'disk0/000000', given.chunk.toString(16).padStart(8, '0')));
        const session = path.join(disk.chunkmount.stateDirectory, 'sessions/demo');
        for (const { pid } of findProcesses((argv) => argv.at(-1) === session)) process.kill(pid, 'SIGKILL');
      });
    case 'written meanwhile':
      seen.disturb();
      return mounted(disk, () => disk.change(given.chunk));
  }
}

beforeAll(() => requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils')));

it('every tree is the disk, whatever was written, killed and set back between sessions', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 3, maxLength: 7 }), async (steps) => {
      const disk = new TrackedDisk();
      const seen = new Seen();
      try {
        seen.check(await disk.good());
        for (const given of steps) await take(given, disk, seen);
        seen.check(await disk.good());
        const last = await disk.good();
        seen.check(last);
        // Else nothing of this was about trackers.
        expect(last.kept).toBe(CHUNKS);
      } finally {
        await disk.close();
      }
    }),
    // Each try takes many sessions: what failed is told as it is, and not made smaller first.
    { numRuns: Number(process.env.TRACKING_RUNS ?? 4), endOnFailure: true },
  );
}, 600_000);
