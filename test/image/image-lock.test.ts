import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { isWrittenByQemu } from '../../src/image/image-lock.js';
import { temporaryDirectory } from '../support/images.js';
import { program, requireAll } from '../support/requirements.js';

let directory: string;
const children: ChildProcess[] = [];
beforeAll(async () => {
  await requireAll(program('python3'));
  directory = temporaryDirectory();
});
afterAll(async () => {
  for (const child of children) {
    const end = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await end;
  }
  fs.rmSync(directory, { recursive: true });
});

/** As QEMU takes them: a shared lock of the open file description on one byte. F_OFD_SETLK is 37 on Linux. */
const PRELUDE = `
import fcntl, os, random, struct, sys
def lock(fd, kind): fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', kind, 0, 101, 1, 0))
fds = [os.open(f'{sys.argv[1]}/{sys.argv[2]}{i}', os.O_RDWR | os.O_CREAT) for i in range(200)]
for fd in fds: lock(fd, fcntl.F_RDLCK)
print('ready', flush=True)
`;

async function locking(name: string, line: string): Promise<void> {
  const args = ['-c', PRELUDE + line, directory, name];
  const child = spawn('python3', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  await new Promise((resolve, reject) => child.stdout.once('data', resolve).once('end', reject));
}

it('a lock is seen though the list is long and others change it while it is read', async () => {
  await locking('held', 'import time; time.sleep(1000)');
  await locking(
    'changed',
    'while True: lock(random.choice(fds), random.choice([fcntl.F_RDLCK, fcntl.F_UNLCK]))',
  );
  for (let round = 0; round < 10; round++) {
    for (let number = 0; number < 200; number++) {
      const name = `held${number}`;
      expect([name, await isWrittenByQemu(path.join(directory, name))]).toEqual([name, true]);
    }
  }
});
