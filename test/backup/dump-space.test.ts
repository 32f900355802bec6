import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DumpSpace } from '../../src/backup/dump/space.js';
import { temporaryDirectory } from '../support/images.js';
import { replaceInFs } from '../support/replaced-fs.js';

const MIB = 1024 * 1024;
const RESERVE = 512 * MIB;

let directory: string;
let free: number;

beforeEach(() => {
  directory = temporaryDirectory();
  replaceInFs('statfsSync', () => ({ bavail: free / 512, bsize: 512 }));
});

afterEach(() => fs.rmSync(directory, { recursive: true }));

/** Room for a dump beside which a VM's disk grows, or none. */
const room = (grows: boolean) => new DumpSpace(path.join(directory, 'mail01.dump'), grows ? [directory] : []);

/** Work that ends when it is stopped, as a program does that does not know why. */
function untilStopped(signal: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => resolve('complete'), 1500);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(new Error('qemu-img was stopped'));
    });
  });
}

describe('the room for a dump', () => {
  it.each([
    [false, MIB],
    [true, MIB + RESERVE],
  ])('is what it needs, and what a VM may write meanwhile: %s', (grows, needed) => {
    const space = room(grows);
    free = needed;
    space.check(MIB, 'the dump');
    expect(space.doubt(MIB)).toBeUndefined();
    free = needed - 512;
    expect(() => space.check(MIB, 'the dump')).toThrow(/there is no room for the dump/);
    expect(space.doubt(MIB)).toContain('are to be compressed into it');
  });

  it('that is left for the VM ends the dump, which says why', async () => {
    free = 2 * RESERVE;
    const work = room(true).guard(undefined, (signal) => {
      free = RESERVE - 512;
      return untilStopped(signal);
    });
    await expect(work).rejects.toThrow(/there is no room to go on .* 512 MiB more for what the VM writes/);
  });

  it('is all for the dump where no VM writes', async () => {
    free = 512;
    expect(await room(false).guard(undefined, untilStopped)).toBe('complete');
  });

  it('does not hide another failure, nor that somebody stopped it', async () => {
    free = 2 * RESERVE;
    const broken = room(true).guard(undefined, () => Promise.reject(new Error('broken')));
    await expect(broken).rejects.toThrow('broken');
    const stop = new AbortController();
    const stopped = room(true).guard(stop.signal, untilStopped);
    stop.abort(new Error('ended by SIGINT'));
    await expect(stopped).rejects.toThrow('ended by SIGINT');
    await expect(room(true).guard(stop.signal, async (signal) => signal.throwIfAborted())).rejects.toThrow(
      'ended by SIGINT',
    );
  });
});
