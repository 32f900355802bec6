import * as fs from 'node:fs';
import { beforeEach, describe, expect, it } from 'vitest';
import { parseOwner } from '../../src/commands/owner.js';
import { replaceInFs } from '../support/replaced-fs.js';

describe('--owner where /etc/passwd is missing', () => {
  beforeEach(() => {
    const { readFileSync } = fs;
    replaceInFs('readFileSync', (file: string, ...rest: []) => {
      const isGone = file === '/etc/passwd' || file === '/etc/group';
      return readFileSync(isGone ? '/nonexistent/passwd' : file, ...rest);
    });
  });

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
