import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { exitCodeWithin } from '../../src/host/exec.js';
import { identify } from '../../src/host/process-identity.js';
import { temporaryDirectory } from '../support/images.js';
import { eventually } from '../support/libvirt.js';

describe('exitCodeWithin', () => {
  it('gives the exit code; none of a program that is missing or was killed', async () => {
    expect(await exitCodeWithin('sh', ['-c', 'exit 7'], 10_000)).toBe(7);
    expect(await exitCodeWithin('no-such-program', [], 10_000)).toBeUndefined();
    expect(await exitCodeWithin('sh', ['-c', 'kill -KILL $$'], 10_000)).toBeUndefined();
  });

  it('kills what takes longer', async () => {
    const directory = temporaryDirectory();
    onTestFinished(() => fs.rmSync(directory, { recursive: true }));
    const file = path.join(directory, 'pid');
    const script = 'trap "" TERM; echo $$ > "$1"; while :; do sleep 0.1; done';
    // Until it got as far as that: how long it takes depends on the machine.
    for (let timeoutMs = 250; !fs.existsSync(file); timeoutMs *= 2)
      expect(await exitCodeWithin('sh', ['-c', script, 'sh', file], timeoutMs)).toBeUndefined();
    const pid = Number(fs.readFileSync(file, 'utf8'));
    await eventually(async () => identify(pid) === undefined);
  });
});
