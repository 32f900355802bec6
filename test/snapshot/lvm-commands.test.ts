import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import {
  createThick,
  createThin,
  extend,
  type LogicalVolume,
} from '../../src/snapshot/lvm/logical-volume.js';
import { programFirst } from '../support/dumps.js';
import { eventually } from '../support/libvirt.js';

/**
 * Says when it has begun: then Ctrl-C reaches it, and a program that does not care for SIGTERM would be killed 2 s later. Says when it has
 * come to its end, and leaves that to a process of its own group.
 */
const SLOW = 'trap \'\' TERM; : >"$0.begun"; (sleep 4; echo "$1" >"$0.done") & wait';

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-lvm-commands-'));
const { PATH } = process.env;

afterEach(() => {
  process.env.PATH = PATH;
  fs.rmSync(directory, { recursive: true, force: true });
});

/** What comes first on PATH under the name of a program of LVM: its file that says that it is done. */
function slow(program: string): string {
  process.env.PATH = programFirst(directory, program, SLOW);
  return path.join(directory, `${program}.done`);
}

/** Stops `work` by a signal as soon as such a program has begun. */
async function stoppedWhileBusy<T>(done: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const abort = new AbortController();
  const worked = work(abort.signal);
  worked.catch(() => {});
  await eventually(async () => fs.existsSync(done.replace(/done$/, 'begun')));
  abort.abort(new Error('ended by SIGINT'));
  return worked;
}

const volume = { group: 'vg', name: 'lv' } as LogicalVolume;

describe('a command of LVM that has begun to change volumes is left to end it', () => {
  it.each([
    [
      'a thick snapshot',
      (signal: AbortSignal) => createThick({ origin: volume, name: 'cm', signal }, ['-l1'], 4),
    ],
    ['a thin snapshot', (signal: AbortSignal) => createThin({ origin: volume, name: 'cm', signal })],
  ])('%s, and only then do we stop', async (_, create) => {
    const done = slow('lvcreate');
    await expect(stoppedWhileBusy(done, create)).rejects.toThrow('ended by SIGINT');
    expect(fs.readFileSync(done, 'utf8')).toBe('--snapshot\n');
  });

  it('a larger snapshot', async () => {
    const done = slow('lvextend');
    await stoppedWhileBusy(done, (signal) => extend(volume, 512, signal));
    expect(fs.readFileSync(done, 'utf8')).toBe('--size\n');
  });

  it('but none begins any more', async () => {
    const done = slow('lvcreate');
    const signal = AbortSignal.abort(new Error('ended by SIGINT'));
    await expect(createThin({ origin: volume, name: 'cm', signal })).rejects.toThrow('ended by SIGINT');
    expect(fs.existsSync(done)).toBe(false);
  });
});
