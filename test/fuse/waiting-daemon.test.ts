import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { WaitingDaemon } from '../../src/fuse/start-daemon.js';
import { spawnDaemon } from '../../src/host/exec.js';
import { identify, waitForEnd } from '../../src/host/process-identity.js';
import { findProcesses } from '../../src/host/process-list.js';
import { build, fuseDevice, requireAll, root } from '../support/requirements.js';

const SCRIPT = path.resolve(import.meta.dirname, '../../dist/backup/daemon.js');
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-waiting-'));
const logFile = path.join(directory, 'log');

beforeAll(() => requireAll(root, build, fuseDevice));
afterAll(() => fs.rmSync(directory, { recursive: true }));

const running = () => findProcesses((argv) => argv.at(-2) === SCRIPT && argv.at(-1) === directory);
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function expectNone(): Promise<void> {
  for (const { pid } of running()) {
    const daemon = identify(pid);
    expect(daemon === undefined || (await waitForEnd(daemon, 60_000))).toBe(true);
  }
}

describe('a daemon that has nothing to serve yet', () => {
  // While Node starts, while our modules are loaded, while its threads are started, and after that.
  it.each([0, 40, 80, 120, 160, 200, 1000])('ends with us, %i ms after its start', async (ms) => {
    const daemon = await spawnDaemon(SCRIPT, [directory], { logFile });
    daemon.tell({ kind: 'prepare', transport: 'native' });
    await pause(ms);
    // As when we are killed.
    daemon.letGo();
    const identity = identify(daemon.pid);
    expect(identity === undefined || (await waitForEnd(identity, 60_000))).toBe(true);
  });

  it.each([0, 100, 1000])('ends when it is not needed, %i ms after its start', async (ms) => {
    const daemon = await WaitingDaemon.start({
      script: SCRIPT,
      args: [directory],
      logFile,
      transport: 'kernel',
    });
    expect(running()).toHaveLength(1);
    await pause(ms);
    daemon.drop();
    await expectNone();
  });

  it('says why it cannot begin, and ends', async () => {
    const daemon = await WaitingDaemon.start({
      script: SCRIPT,
      args: [directory],
      logFile,
      transport: 'native',
    });
    const begun: unknown[] = [];
    const mount = daemon.mount({
      mountpoint: directory,
      source: 'nothing',
      allowOther: false,
      readAhead: 0,
      onBegin: (identity) => begun.push(identity),
    });
    await expect(mount).rejects.toThrow(/daemon\.json/);
    expect(begun).toEqual([expect.objectContaining({ pid: expect.any(Number) })]);
    daemon.drop();
    await expectNone();
  });
});
