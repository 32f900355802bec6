import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { run, spawnDetached } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { findProcesses } from '../../src/host/process-list.js';
import { useDemoImage } from './demo-image.js';
import { eventually, expectError } from './expectations.js';

const DIED = 'the daemon of demo died before its tree was unmounted: what was copied is not a whole backup';
const preload = (file: string) => `--import=${pathToFileURL(path.join(import.meta.dirname, file)).href}`;

/** What a daemon that ends in good order may and may not be taken for. */
describe('the daemon', () => {
  const { chunkmount, marker, tree, chunk, given, cleanup } = useDemoImage();
  const daemons = () => findProcesses((argv) => argv.at(-1) === `${chunkmount.stateDirectory}/sessions/demo`);

  async function end(signal: NodeJS.Signals): Promise<void> {
    const [daemon] = daemons();
    process.kill(daemon!.pid, signal);
    await eventually(() => daemons().length === 0);
  }

  /** Mounts, and waits until all chunks are known. */
  async function mountAndScan(): Promise<void> {
    await chunkmount.succeed(...given);
    await eventually(async () => {
      const { scan } = JSON.parse(await chunkmount.succeed('list', '--json')).sessions[0].daemon;
      return scan.resolved === scan.chunks;
    });
  }

  /** Cleans up, and dies after so many records of the journal. */
  async function dyingCleanup(records: number): Promise<void> {
    const env = {
      NODE_OPTIONS: preload('../crash/die-at-record.mjs'),
      CRASH_AT: String(records),
      CRASH_COUNT: marker,
    };
    expect(await chunkmount.start(['cleanup', '--name=demo'], env)).toMatchObject({ signal: 'SIGKILL' });
  }

  it('is told to end where a mount namespace that was made meanwhile keeps the tree, and knows all for the next session', async () => {
    await mountAndScan();
    const pid = await spawnDetached('unshare', ['--mount', '--propagation', 'private', 'sleep', 'infinity'], {
      logFile: marker,
    });
    try {
      const mounts = () => fs.readFileSync(`/proc/${pid}/mountinfo`, 'utf8');
      await eventually(() => fs.readlinkSync(`/proc/${pid}/ns/mnt`) !== fs.readlinkSync('/proc/self/ns/mnt'));
      expect(mounts()).toContain(` ${tree} `);
      const { exitCode, stderr } = await chunkmount.run(['cleanup', '--name=demo', '--debug']);
      expect(exitCode).toBe(0);
      expect(stderr).not.toContain('does not end by itself');
      const record = path.join(chunkmount.stateDirectory, 'index/demo/tree.v1.json');
      expect(JSON.parse(fs.readFileSync(record, 'utf8'))).toMatchObject({ unsettled: 0 });
      // Nobody wrote the image, and what the trackers need is recorded.
      expect((await chunkmount.run(['estimate', ...given])).stdout).toContain('still');
    } finally {
      process.kill(pid, 'SIGKILL');
    }
  });

  describe('that ends while its tree is mounted', () => {
    /** Runs a command while the tree is there, until the daemon is gone: nothing else may have taken the tree away. */
    const runUntilGone = (command: string, env = {}) => {
      const daemon = `daemon=$(pgrep -f '${chunkmount.stateDirectory}/sessions/demo$')`;
      const script = `${daemon}; ${command}; while kill -0 $daemon 2>/dev/null; do :; done; exit 0`;
      return chunkmount.run(['run', ...given, '--', 'sh', '-c', script], env);
    };

    it.each(['TERM', 'INT', 'HUP'])('by SIG%s, is no clean end', async (signal) => {
      const result = await runUntilGone(`kill -${signal} $daemon`);
      expect(expectError(result, 1).message).toBe(DIED);
    });

    it('because one of its threads died, is no clean end', async () => {
      const env = { NODE_OPTIONS: preload('fixtures/dying-thread.mjs'), TEST_MARKER: marker };
      const result = await runUntilGone(`: >'${marker}'; ls -lR '${tree}' >/dev/null`, env);
      expect(expectError(result, 1).message).toBe(DIED);
    });

    it('is not forgotten by a cleanup that is cut off', async () => {
      await chunkmount.succeed(...given);
      await end('SIGTERM');
      await dyingCleanup(1);
      expect(expectError(await cleanup(), 1).message).toBe(DIED);
    });
  });

  it('that was killed while it saved leaves nothing for good', async () => {
    await chunkmount.succeed('run', ...given, '--', 'true');
    const index = path.join(chunkmount.stateDirectory, 'index/demo');
    const before = fs.readdirSync(index);
    fs.writeFileSync(path.join(index, '.disk0.v1.4711.tmp'), 'half of an index');
    await chunkmount.succeed('run', ...given, '--', 'true');
    expect(fs.readdirSync(index)).toEqual(before);
  });

  it('that cannot save what it found out tells cleanup so', async () => {
    await mountAndScan();
    // The last file that it writes.
    const record = path.join(chunkmount.stateDirectory, 'index/demo/disk0.tracking.v1.json');
    fs.rmSync(record, { force: true });
    fs.mkdirSync(record);
    try {
      expect(expectError(await cleanup(), 1)).toEqual({
        message: expect.stringMatching(/^the index could not be saved: EISDIR/),
        hint: 'the backup is good, but the next one may send chunks again that did not change',
      });
    } finally {
      fs.rmdirSync(record);
    }
  });

  it('that is told to end because a reader held on to the tree ends well', async () => {
    await chunkmount.succeed(...given);
    const fd = fs.openSync(chunk, 'r');
    const { exitCode, stderr } = await cleanup();
    fs.closeSync(fd);
    expect(exitCode, stderr).toBe(0);
    expect(stderr).toContain('it is taken away from them');
  });

  it('that a cleanup was about to tell ends well, too, although that cleanup was cut off', async () => {
    await chunkmount.succeed(...given);
    const fd = fs.openSync(chunk, 'r');
    await dyingCleanup(1);
    expect(mountAt(tree)).toBeUndefined();
    await end('SIGTERM');
    fs.closeSync(fd);
    expect(await cleanup()).toMatchObject({ exitCode: 0, stderr: '' });
  });

  it('that is told to end after its tree was unmounted ends well', async () => {
    const env = { NODE_OPTIONS: preload('fixtures/slow-disk.mjs'), TEST_READ_MS: '60000' };
    expect(await chunkmount.run(given, env)).toMatchObject({ exitCode: 0 });
    await run('umount', [tree]);
    // Removed once the daemon knows; it then waits for its scanners.
    await eventually(() => !fs.existsSync(tree));
    expect(daemons()).toHaveLength(1);
    await end('SIGTERM');
    expect(await cleanup()).toMatchObject({ exitCode: 0, stderr: '' });
  });
});
