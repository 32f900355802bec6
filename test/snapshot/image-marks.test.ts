import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { bootId } from '../../src/host/process-identity.js';
import { markImages, writtenImages } from '../../src/snapshot/image-marks.js';
import { requireAll, root } from '../support/requirements.js';

const MIB = 1024 * 1024;

describe('marks of images', () => {
  let directory: string;
  let file: string;

  beforeEach(() => {
    directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-marks-'));
    file = path.join(directory, 'a.raw');
    fs.writeFileSync(file, Buffer.alloc(MIB));
  });

  afterEach(() => fs.rmSync(directory, { recursive: true }));

  it('tell which were written, and nothing of those that are not there', () => {
    const gone = path.join(directory, 'b.raw');
    const marked = markImages([gone, file]);
    expect(marked.marks?.[0]).toBeNull();
    fs.writeFileSync(gone, 'new');
    expect(writtenImages(marked, bootId())).toEqual([]);
    fs.writeFileSync(file, 'written');
    expect(writtenImages(marked, bootId())).toEqual([file]);
  });

  it('of a block device do not change when what was written before reaches it', async () => {
    await requireAll(root);
    const { stdout } = await run('losetup', ['--find', '--show', file]);
    const device = stdout.trim();
    const fd = fs.openSync(device, 'r+');
    try {
      // Open all the while: the last close would write it out.
      fs.writeSync(fd, Buffer.alloc(MIB, 1));
      const marked = markImages([device]);
      fs.fsyncSync(fd);
      expect(writtenImages(marked, bootId())).toEqual([]);
      fs.writeSync(fd, Buffer.alloc(4096, 2), 0, 4096, 0);
      fs.fsyncSync(fd);
      expect(writtenImages(marked, bootId())).toEqual([device]);
    } finally {
      fs.closeSync(fd);
      await run('losetup', ['--detach', device]);
    }
  });
});
