import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import { stopServingUndo } from '../../src/backup/stop-serving.js';
import { identify, isAlive } from '../../src/host/process-identity.js';
import { silentReporter } from '../../src/report/reporter.js';
import { DyingJournal } from '../support/dying-journal.js';
import { temporaryDirectory } from '../support/images.js';

it('a daemon is not told to end before it is recorded that we do', async () => {
  const directory = temporaryDirectory();
  onTestFinished(() => fs.rmSync(directory, { recursive: true }));
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  await once(child, 'spawn');
  const daemon = identify(child.pid!)!;
  // The first record is that there is one.
  const journal = new DyingJournal(path.join(directory, 'journal.jsonl'), 2, true);
  const mountpoint = path.join(directory, 'mail01');
  const entry = journal.intend('serve', { mountpoint, source: 's', sessionDirectory: directory, daemon });
  const undo = stopServingUndo.serve(entry, { journal, reporter: silentReporter });
  await expect(undo).rejects.toThrow('killed');
  journal.close();
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(isAlive(daemon)).toBe(true);
});
