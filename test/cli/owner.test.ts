import * as fs from 'node:fs';
import { beforeEach, describe, expect, it } from 'vitest';
import { parseOwner } from '../../src/commands/owner.js';
import { replaceInFs } from '../support/replaced-fs.js';

/** Puts other files in the place of /etc/passwd and /etc/group. */
function withFiles(files: Readonly<Record<string, string | undefined>>): void {
  const { readFileSync } = fs;
  replaceInFs('readFileSync', (file: string, ...rest: []) =>
    file in files ? (files[file] ?? readFileSync('/nonexistent/passwd')) : readFileSync(file, ...rest),
  );
}

describe('--owner', () => {
  beforeEach(() =>
    withFiles({
      '/etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nbackup:x:34:35:backup:/var/backups:/bin/sh\n',
      '/etc/group': 'root:x:0:\nbackup:x:36:\n',
    }),
  );

  it.each([
    ['backup', { uid: 34, gid: 35 }],
    ['34', { uid: 34, gid: 35 }],
    ['backup:backup', { uid: 34, gid: 36 }],
    ['34:36', { uid: 34, gid: 36 }],
    ['1234:backup', { uid: 1234, gid: 36 }],
    ['backup:0', { uid: 34, gid: 0 }],
  ])('%s', (text, owner) => {
    expect(parseOwner(text)).toEqual(owner);
  });

  it.each([
    ['1234', 'user 1234 has no group of its own'],
    ['nobody', 'there is no user called "nobody" on this host'],
    ['backup:nobody', 'there is no group called "nobody" on this host'],
    ['', 'there is no user called "" on this host'],
    ['backup:', 'there is no group called "" on this host'],
  ])('refuses %j', (text, message) => {
    expect(() => parseOwner(text)).toThrow(message);
  });
});

describe('--owner where /etc/passwd is missing', () => {
  beforeEach(() => withFiles({ '/etc/passwd': undefined, '/etc/group': undefined }));

  it('says so of a name', () => {
    expect(() => parseOwner('nobody')).toThrow(
      expect.objectContaining({
        message: '/etc/passwd, which has the numbers of names, cannot be read: ENOENT',
        hint: 'give numbers: --owner=1000:1000',
      }),
    );
  });

  it('takes numbers', () => {
    expect(parseOwner('12:13')).toEqual({ uid: 12, gid: 13 });
  });
});
