import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bootId } from '../../src/host/process-identity.js';
import {
  durableMark,
  identityOf,
  isSameImage,
  wasWritten,
  writeMark,
} from '../../src/snapshot/image-identity.js';
import { TestFileSystem } from '../support/file-systems.js';

describe('wasWritten', () => {
  const here = bootId();

  it.each([
    ['the same time', 'time 5', 'time 5', 'there', false],
    ['a later time', 'time 5', 'time 6', 'there', true],
    ['a later time with more digits', 'time 9', 'time 10', 'there', true],
    ['an earlier time, of this boot', 'time 6', 'time 5', here, true],
    ['an earlier time, of another boot', 'time 6', 'time 5', 'there', undefined],
    ['an earlier time with fewer digits', 'time 10', 'time 9', 'there', undefined],
    ['an earlier time, of who knows which boot', 'time 6', 'time 5', undefined, undefined],
    ['the same count of sectors', `boot ${here} sectors 5`, `boot ${here} sectors 5`, here, false],
    ['another count', `boot ${here} sectors 5`, `boot ${here} sectors 6`, here, true],
    ['a count of another boot', 'boot there sectors 5', `boot ${here} sectors 6`, 'there', undefined],
    ['a file that became a device', 'time 5', `boot ${here} sectors 6`, 'there', true],
    ['no mark', undefined, 'time 5', here, undefined],
    ['no mark any more', 'time 5', undefined, here, undefined],
  ])('%s', (_, before, after, boot, answer) => {
    expect(wasWritten(before, after, boot)).toBe(answer);
  });
});

describe('isSameImage', () => {
  it('a file is the same on storage that was attached anew, where its birth is known', async () => {
    const fileSystem = await TestFileSystem.make('ext4');
    try {
      const file = path.join(fileSystem.directory, 'image');
      fs.writeFileSync(file, '');
      await durableMark(file);
      const before = identityOf(file)!;
      const after = await fileSystem.afterPowerFailure(async (directory) =>
        identityOf(path.join(directory, 'image')),
      );
      expect(after!.device).not.toBe(before.device);
      expect(isSameImage(before, after!)).toBe(true);
      const unborn = { birth: '0' };
      expect(isSameImage({ ...before, ...unborn }, { ...after!, ...unborn })).toBe(false);
      expect(isSameImage({ ...before, ...unborn }, { ...after!, ...unborn, bootId: 'there' })).toBe(true);
      fs.rmSync(file);
      fs.writeFileSync(file, '');
      expect(isSameImage(before, identityOf(file)!)).toBe(false);
    } finally {
      await fileSystem.close();
    }
  });

  it('a block device goes by its number, which is another one after a reboot', () => {
    const device = { device: '1', inode: 'block', birth: '0', bootId: bootId() };
    expect(isSameImage(device, { ...device, device: '2' })).toBe(false);
    expect(isSameImage(device, { ...device, device: '2', bootId: 'there' })).toBe(true);
  });
});

describe('a power failure', () => {
  let fileSystem: TestFileSystem;
  beforeAll(async () => {
    // Without the option, the time would be on the disk some seconds later.
    fileSystem = await TestFileSystem.make('ext4', { mount: ['lazytime'] });
  });
  afterAll(() => fileSystem?.close());

  /** What QEMU does at a guest's flush: what was written is on the disk then, and when, is not. */
  function written(name: string): string {
    const file = path.join(fileSystem.directory, name);
    const fd = fs.openSync(file, 'w+');
    fs.writeSync(fd, 'before');
    fs.fsyncSync(fd);
    fs.futimesSync(fd, 1_000_000_000, 1_000_000_000);
    fs.fsyncSync(fd);
    fs.writeSync(fd, 'after!', 0);
    fs.fdatasyncSync(fd);
    fs.closeSync(fd);
    return file;
  }

  function markAfter(file: string): Promise<string | undefined> {
    return fileSystem.afterPowerFailure((directory) => {
      const copy = path.join(directory, path.basename(file));
      expect(fs.readFileSync(copy, 'utf8')).toBe('after!');
      return writeMark(copy);
    });
  }

  it('takes back when a file was written, and not what: that cannot be told from nothing having been written', async () => {
    const file = written('plain');
    const mark = writeMark(file);
    const after = await markAfter(file);
    expect(after).not.toBe(mark);
    expect(wasWritten(mark, after, 'another boot')).toBeUndefined();
  });

  it('takes nothing back that was marked durably', async () => {
    const file = written('durable');
    const mark = await durableMark(file);
    expect(mark).toBe(writeMark(file));
    expect(await markAfter(file)).toBe(mark);
  });

  it('before which a file could not be brought to the disk: that file is named', async () => {
    await expect(durableMark(path.join(fileSystem.directory, 'none'))).rejects.toThrow(
      /none cannot be brought to the disk.*ENOENT/,
    );
  });
});
