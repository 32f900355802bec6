import * as path from 'node:path';
import { describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { EXAMPLES } from './backed-up-vm.js';

describe.each(['borg', 'rclone', 'restic', 'rsync'])('%s-daily', (name) => {
  it.each(['all', 'mail01,web'])('does not back up only the first of %s', async (vms) => {
    const script = path.join(EXAMPLES, name, `${name}-daily`);
    const { exitCode, stderr } = await run(script, [vms], { accept: [2] });
    expect({ exitCode, stderr }).toEqual({ exitCode: 2, stderr: `${name}-daily: give one VM\n` });
  });
});

describe.each(['borg', 'rclone', 'restic', 'rsync'])('%s-daily', (name) => {
  it.each([['--all-running'], ['--vm=web'], ['--vm', 'web'], ['--state', '--vm=web']])(
    'does not back up another VM in the place of the one: %s %s',
    async (...options) => {
      const script = path.join(EXAMPLES, name, `${name}-daily`);
      const { exitCode, stderr } = await run(script, ['mail01', ...options], { accept: [2] });
      expect({ exitCode, stderr }).toEqual({ exitCode: 2, stderr: `${name}-daily: give one VM\n` });
    },
  );
});

describe('rclone-daily', () => {
  it('does not begin when it is to keep what is no number', async () => {
    const script = path.join(EXAMPLES, 'rclone/rclone-daily');
    const { exitCode, stderr } = await run(script, ['mail01'], { accept: [2], env: { KEEP: 'all' } });
    const expected = 'rclone-daily: KEEP=all is no number of directories\n';
    expect({ exitCode, stderr }).toEqual({ exitCode: 2, stderr: expected });
  });
});

describe('rsync-daily', () => {
  it('does not begin where its store is not mounted', async () => {
    const script = path.join(EXAMPLES, 'rsync/rsync-daily');
    const env = { STORE: '/nonexistent/store' };
    const { exitCode, stderr } = await run(script, ['mail01'], { accept: [2], env });
    const expected =
      'rsync-daily: there is no directory /nonexistent/store: make it, or mount what it lies on\n';
    expect({ exitCode, stderr }).toEqual({ exitCode: 2, stderr: expected });
  });

  it.each(['0', '-1', 'all'])('does not begin when it is to keep %s backups', async (keep) => {
    const script = path.join(EXAMPLES, 'rsync/rsync-daily');
    const { exitCode, stderr } = await run(script, ['mail01'], { accept: [2], env: { KEEP: keep } });
    const expected = `rsync-daily: KEEP=${keep} is no number of backups from 1 on\n`;
    expect({ exitCode, stderr }).toEqual({ exitCode: 2, stderr: expected });
  });
});
