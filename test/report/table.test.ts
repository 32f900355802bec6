import { describe, expect, it } from 'vitest';
import { tableLines } from '../../src/report/table.js';

const HEAD = ['NAME', 'STATE', 'MOUNTPOINT', 'FREE'];
const ROWS = [
  ['mail01', 'mounted', '/b/mail01', '3.1 GiB'],
  ['x', '\x1b[1;31mdead\x1b[0m', '/b/x', '-'],
];
const WIDE = [
  'NAME    STATE    MOUNTPOINT  FREE',
  'mail01  mounted  /b/mail01   3.1 GiB',
  'x       \x1b[1;31mdead\x1b[0m     /b/x        -',
];

describe('a table', () => {
  it('has a line for each row, with columns that are aligned, whatever their colours', () => {
    expect(tableLines(HEAD, ROWS)).toEqual(WIDE);
  });

  it('is one as long as it fits', () => {
    expect(tableLines(HEAD, ROWS, 36)).toEqual(WIDE);
    expect(tableLines(HEAD, ROWS, 35)).toEqual([
      'mail01: mounted',
      '  mountpoint  /b/mail01',
      '  free        3.1 GiB',
      '',
      'x: \x1b[1;31mdead\x1b[0m',
      '  mountpoint  /b/x',
      '  free        -',
    ]);
  });
});
