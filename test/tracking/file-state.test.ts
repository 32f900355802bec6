import { expect, it } from 'vitest';
import { difference, type FileState, fileState } from '../../src/tracking/file-state.js';

it.each<[Partial<FileState>, string | undefined]>([
  [{ path: '/elsewhere' }, undefined],
  [{ format: 'qcow2' }, 'is read as qcow2, and was read as raw'],
  [{ device: '1' }, 'is another file'],
  [{ inode: '1' }, 'is another file'],
  [{ birth: '1' }, 'is another file'],
  [{ size: '1' }, 'has another size'],
  [{ mtime: '1' }, 'was written'],
  [{ ctime: '1' }, 'was written'],
])('a file with %j now %s', (change, differs) => {
  const before = fileState(import.meta.filename, 'raw');
  expect(difference(before, { ...before, ...change })).toBe(differs);
});
