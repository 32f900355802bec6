import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ownIdentity } from '../../src/host/process-identity.js';
import { makeSocketDirectory } from '../../src/snapshot/pull/place.js';
import { temporaryDirectory } from '../support/images.js';

let root: string;

beforeEach(() => {
  root = temporaryDirectory();
});
afterEach(() => fs.rmSync(root, { recursive: true }));

describe("the directory of a backup job's socket", () => {
  const base = () => path.join(root, 'chunkmount');
  const directory = () => path.join(base(), 's1');

  it('is for one user alone', () => {
    makeSocketDirectory(directory(), ownIdentity());
    expect(fs.statSync(base()).mode & 0o777).toBe(0o711);
    expect(fs.statSync(directory()).mode & 0o777).toBe(0o700);
  });

  it('lets the user of QEMU through, also where a strict umask made it', () => {
    fs.mkdirSync(base(), { mode: 0o700 });
    makeSocketDirectory(directory(), ownIdentity());
    expect(fs.statSync(base()).mode & 0o777).toBe(0o711);
  });

  it.each([
    ['others may write to', () => fs.chmodSync(base(), 0o777)],
    ['is of another user', () => fs.chownSync(base(), 65534, 65534)],
    ['is a link', () => fs.renameSync(base(), `${base()}.away`)],
  ])('is not made in one that %s', (_, change) => {
    fs.mkdirSync(base());
    change();
    if (!fs.existsSync(base())) fs.symlinkSync(`${base()}.away`, base());
    expect(() => makeSocketDirectory(directory(), ownIdentity())).toThrow('can be written by others');
    expect(fs.existsSync(directory())).toBe(false);
  });
});
