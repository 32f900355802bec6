import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  createThick,
  createThin,
  extend,
  type LogicalVolume,
  remove,
} from '../../src/snapshot/lvm/logical-volume.js';
import { programFirst } from '../support/dumps.js';
import { eventually } from '../support/libvirt.js';
import { RecordingReporter } from '../support/snapshot-session.js';

/**
 * Says when it has begun: then Ctrl-C reaches it, and a program that does not care for SIGTERM would be killed 2 s later. Says when it has
 * come to its end, and leaves that to a process of its own group.
 */
const SLOW = 'trap \'\' TERM; : >"$0.begun"; (sleep 4; echo "$1" >"$0.done") & wait';

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-lvm-commands-'));
const { PATH } = process.env;

afterEach(() => {
  vi.useRealTimers();
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

describe('a command of LVM', () => {
  it('that takes long is told of, and none that has ended', async () => {
    const began = path.join(directory, 'began');
    const end = path.join(directory, 'end');
    process.env.PATH = programFirst(
      directory,
      'lvcreate',
      `: >'${began}'; while ! [ -e '${end}' ]; do sleep 0.1; done`,
    );
    const reporter = new RecordingReporter();
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const making = createThin({ origin: volume, name: 'cm', reporter });
    await vi.waitFor(() => expect(fs.existsSync(began)).toBe(true), { timeout: 60_000 });
    vi.advanceTimersByTime(19_000);
    expect(reporter.messages).toEqual([]);
    vi.advanceTimersByTime(1_000);
    const told = 'notice: lvcreate takes long; it is waited for, because the VM might stand still without it';
    expect(reporter.messages).toEqual([told]);
    fs.writeFileSync(end, '');
    await making;
    await createThin({ origin: volume, name: 'cm', reporter });
    vi.advanceTimersByTime(60_000);
    expect(reporter.messages).toEqual([told]);
  });

  it('that removes goes by the UUID; only that LVM refuses is no error', async () => {
    const said = path.join(directory, 'said');
    const removing = (status: number) => {
      process.env.PATH = PATH;
      process.env.PATH = programFirst(directory, 'lvremove', `echo "$*" >'${said}'; exit ${status}`);
      return remove({ ...volume, uuid: 'Rd3-x' });
    };
    expect(await removing(0)).toBe(true);
    expect(fs.readFileSync(said, 'utf8')).toBe('--yes --select lv_uuid=Rd3-x vg\n');
    expect(await removing(5)).toBe(false);
    await expect(removing(3)).rejects.toThrow('lvremove');
  });
});
