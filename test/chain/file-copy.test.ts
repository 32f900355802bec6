import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { copyFile } from '../../src/chain/file-copy.js';
import { silentReporter } from '../../src/report/reporter.js';
import { noise, temporaryDirectory } from '../support/images.js';

const PIECE = 1024 * 1024;

let directory: string;

beforeEach(() => {
  directory = temporaryDirectory();
});

afterEach(() => fs.rmSync(directory, { recursive: true }));

describe('a copy of a file has each byte of it', () => {
  it.each([0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 500])(
    'of %i, also zeros at its end',
    async (size) => {
      const [from, to] = ['from', 'to'].map((name) => path.join(directory, name)) as [string, string];
      const content = noise(size, 1);
      for (const zeros of [0, 1, PIECE]) {
        const whole = Buffer.concat([content, Buffer.alloc(zeros)]);
        fs.writeFileSync(from, whole);
        fs.writeFileSync(to, '');
        await copyFile(from, to, { label: 'copying', reporter: silentReporter });
        expect(fs.readFileSync(to).equals(whole)).toBe(true);
      }
    },
  );
});
