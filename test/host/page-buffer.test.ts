import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { pageBuffer } from '../../src/host/page-buffer.js';
import { temporaryDirectory } from '../support/images.js';

describe('a page buffer', () => {
  test.each([0, 16, 4096, 5000])('has a page border at byte %i: O_DIRECT asks for one', (aligned) => {
    const buffer = pageBuffer(aligned + 8192, aligned);
    buffer.fill('x', aligned, aligned + 4096);
    const directory = temporaryDirectory();
    onTestFinished(() => fs.rmSync(directory, { recursive: true }));
    const file = path.join(directory, 'file');
    const fd = fs.openSync(file, fs.constants.O_WRONLY | fs.constants.O_CREAT | fs.constants.O_DIRECT);
    onTestFinished(() => fs.closeSync(fd));
    expect(fs.writeSync(fd, buffer, aligned, 4096, 0)).toBe(4096);
    expect(() => fs.writeSync(fd, buffer, aligned + 16, 4096, 4096)).toThrow('EINVAL');
    expect(fs.readFileSync(file, 'utf8')).toBe('x'.repeat(4096));
  });

  test.each([1, 65_536, 65_537])('has %i bytes, which are zeros', (length) => {
    const buffer = pageBuffer(length, 16);
    expect(buffer.byteLength).toBe(length);
    expect(buffer.every((byte) => byte === 0)).toBe(true);
  });
});
