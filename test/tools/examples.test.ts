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
