import { exitCodeWithin } from './exec.js';

/**
 * Whether the file system at `mountpoint` answers; undefined if that is not known after `timeoutMs`. statfs is never answered from a
 * cache, so a mount whose daemon died shows. Another process asks: while a thread of ours sits in statfs(2), process.exit waits for it.
 */
export async function mountAnswers(mountpoint: string, timeoutMs: number): Promise<boolean | undefined> {
  const code = await exitCodeWithin('stat', ['-f', '-c', '', '--', mountpoint], timeoutMs);
  return code === undefined ? undefined : code === 0;
}
