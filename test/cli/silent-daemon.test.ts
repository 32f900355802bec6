import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { readSessionRecord } from '../../src/backup/session-record.js';
import { waitForUnmount } from '../../src/backup/wait-for-unmount.js';
import { findProcesses } from '../../src/host/process-list.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { build, fuseDevice, requireAll, root } from '../support/requirements.js';
import { eventually, traces } from './expectations.js';

/** Far more than `list` needs on a busy machine. It used to wait for the daemon. */
const LIST_TIMEOUT_MS = 30_000;

describe('a daemon that does not answer, but lives', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');
  const journal = path.join(chunkmount.stateDirectory, 'sessions/demo/journal.jsonl');

  beforeAll(async () => {
    await requireAll(root, build, fuseDevice);
    fs.writeFileSync(image, noise(1024 * 1024, 1));
  });

  beforeEach(async () => {
    await chunkmount.succeed(`--image=${image}`, '--name=demo');
    signalDaemon('SIGSTOP');
  });

  afterEach(async () => {
    if (daemon() !== undefined) signalDaemon('SIGCONT');
    await chunkmount.run(['cleanup', '--all']);
    expect(traces(chunkmount)).toEqual([]);
  });

  afterAll(() => chunkmount.close());

  const session = () => readSessionRecord(path.dirname(journal))!;
  const daemon = () => findProcesses((argv) => argv.at(-1)?.endsWith('/sessions/demo') === true)[0];

  function signalDaemon(signal: NodeJS.Signals): void {
    process.kill(daemon()!.pid, signal);
  }

  /** The state that `list` shows; undefined if it does not end. */
  async function listed(): Promise<unknown> {
    const listing = chunkmount.start(['list', '--json']);
    const timer = setTimeout(() => signalDaemon('SIGCONT'), LIST_TIMEOUT_MS);
    const began = performance.now();
    const { stdout } = await listing;
    clearTimeout(timer);
    if (performance.now() - began >= LIST_TIMEOUT_MS) return undefined;
    return JSON.parse(String(stdout)).sessions[0].state;
  }

  it('keeps nobody from listing sessions', async () => {
    expect(await listed()).toBe('mounted');
    signalDaemon('SIGKILL');
    await eventually(() => daemon() === undefined);
    expect(await listed()).toBe('dead');
  });

  it('keeps nobody from it when the journal cannot be read, either', async () => {
    const content = fs.readFileSync(journal);
    fs.writeFileSync(journal, `damaged\n${content}`);
    try {
      expect(await listed()).toBe('mounted');
      signalDaemon('SIGKILL');
      await eventually(() => daemon() === undefined);
      expect(await listed()).toBe('incomplete');
    } finally {
      fs.writeFileSync(journal, content);
    }
  });

  it('leaves nobody who waits for the unmount with questions that have no answer', async () => {
    const patience = AbortSignal.timeout(5_000);
    await waitForUnmount(session(), patience);
    // It was not taken for gone.
    expect(patience.aborted).toBe(true);
    expect(process.getActiveResourcesInfo().filter((kind) => /FSReq|ChildProcess/i.test(kind))).toEqual([]);
    signalDaemon('SIGKILL');
    await eventually(() => daemon() === undefined);
    await waitForUnmount(session(), AbortSignal.timeout(60_000));
  });
});
