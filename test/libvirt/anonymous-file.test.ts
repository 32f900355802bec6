import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { anonymousFile } from '../../src/libvirt/anonymous-file.js';
import { openDescriptors } from '../support/descriptors.js';
import { replaceInFs } from '../support/replaced-fs.js';

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-anonymous-'));

afterEach(() => vi.unstubAllEnvs());
afterAll(() => fs.rmSync(directory, { recursive: true }));

describe('a file for virsh', () => {
  function expectText(text: string): void {
    const fd = anonymousFile(text);
    try {
      expect(fs.readFileSync(`/proc/self/fd/${fd}`, 'utf8')).toBe(text);
      expect(fs.fstatSync(fd)).toMatchObject({ nlink: 0 });
    } finally {
      fs.closeSync(fd);
    }
  }

  it('leaves nothing behind', () => {
    vi.stubEnv('TMPDIR', directory);
    expectText('<domain/>');
    expect(fs.readdirSync(directory)).toEqual([]);
  });

  it('is in memory where there is no room, and the other file is closed', () => {
    const before = openDescriptors();
    const restore = replaceInFs('writeSync', () => {
      restore();
      throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
    });
    expectText('<domain/>');
    expect(openDescriptors()).toBe(before);
  });

  it.each(['nowhere', '/dev/full'])('is had without a place for temporary files: %s', (place) => {
    vi.stubEnv('TMPDIR', path.resolve(directory, place));
    expectText('<domain/>');
  });
});
