import * as fs from 'node:fs';
import * as path from 'node:path';
import { execaSync } from 'execa';
import fc from 'fast-check';
import { beforeAll, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNKS, type Session, TrackedDisk } from './tracked-disk.js';

const chunk = fc.nat(CHUNKS - 1);

/** What can happen to an image and its sessions. */
const event = fc.oneof(
  fc.record({ kind: fc.constant('nothing' as const) }),
  fc.record({ kind: fc.constant('write' as const), chunk }),
  // Another file of that name with the times of the old one, as a restore makes it; with a change or without.
  fc.record({ kind: fc.constant('replace' as const), chunk: fc.option(chunk) }),
  // The times set back after a change, as far as a program can.
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('set back' as const), chunk }) },
  // Sessions: in the same moment as the last one, as far as the clock tells; or not seen to their end.
  fc.record({ kind: fc.constant('session at once' as const) }),
  fc.record({ kind: fc.constant('short session' as const) }),
  fc.record({ kind: fc.constant('killed' as const), chunk }),
  fc.record({ kind: fc.constant('written meanwhile' as const), chunk }),
);
type Event = typeof event extends fc.Arbitrary<infer T> ? T : never;

/** `look`: whether there is a whole session after it. */
const step = fc.record({ event, look: fc.boolean() });

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

/** Does `work`, and gives the image the times that it had, to the nanosecond. */
function setBack(disk: TrackedDisk, work: () => void): void {
  const times = `${disk.image}.times`;
  execaSync('touch', [`--reference=${disk.image}`, times]);
  work();
  execaSync('touch', [`--reference=${times}`, disk.image]);
}

function replace(disk: TrackedDisk): void {
  fs.copyFileSync(disk.image, `${disk.image}.new`);
  fs.renameSync(`${disk.image}.new`, disk.image);
}

async function take(given: Event, disk: TrackedDisk, seen: Seen): Promise<void> {
  switch (given.kind) {
    case 'nothing':
      return;
    case 'write':
      return disk.change(given.chunk);
    case 'replace':
      return setBack(disk, () => {
        replace(disk);
        if (given.chunk !== null) disk.change(given.chunk);
      });
    case 'set back':
      return setBack(disk, () => disk.change(given.chunk));
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
      return mounted(disk, () => disk.changeMeanwhile(given.chunk));
  }
}

beforeAll(() => requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils')));

it('every tree is the disk, whatever was written, killed and set back between sessions', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 6 }), async (steps) => {
      const disk = new TrackedDisk();
      const seen = new Seen();
      try {
        seen.check(await disk.good());
        for (const { event: given, look } of steps) {
          await take(given, disk, seen);
          if (look) seen.check(await disk.good());
        }
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
    { numRuns: Number(process.env.TRACKING_RUNS ?? 2), endOnFailure: true },
  );
}, 600_000);
