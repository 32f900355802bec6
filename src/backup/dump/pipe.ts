import * as fs from 'node:fs';
import { run } from '../../host/exec.js';

/** Both ends of a pipe, as descriptors that block: Node's own pipes to programs are sockets that do not. */
export interface Pipe {
  readonly read: number;
  readonly write: number;
}

/** Makes two pipes. Both names are paths that nothing is at, in a directory that only we write to; nothing of them is left. */
export async function openPipes(first: string, second: string): Promise<[Pipe, Pipe]> {
  await run('mkfifo', ['-m', '0600', first, second]);
  return [openPipe(first), openPipe(second)];
}

function openPipe(name: string): Pipe {
  // Opening one end waits for the other; this is both.
  const both = fs.openSync(name, 'r+');
  try {
    return { write: fs.openSync(name, fs.constants.O_WRONLY), read: fs.openSync(name, 'r') };
  } finally {
    fs.closeSync(both);
    fs.rmSync(name);
  }
}
