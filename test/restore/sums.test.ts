import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatHash } from '../../src/chunks/paths.js';
import { type SumsShape, skippedSumsLine, sumsLine, sumsLineLength } from '../../src/chunks/sums-line.js';
import { parseSums, readSums } from '../../src/restore/sums.js';
import { Tree } from '../../src/restore/tree.js';
import { testBytes, writeTree, xxh64 } from '../support/trees.js';
import { temporaryDirectory } from './built.js';
import { editManifest } from './demo-tree.js';

const hash = fc
  .array(fc.nat({ max: 0xffffffff }), { minLength: 2, maxLength: 2 })
  .map(([high, low]) => formatHash(high!, low!));
const shape = (directory: string, layout: SumsShape['layout'] = 'chunkmount'): SumsShape => ({
  directory,
  layout,
});
const VDA = shape('vda');
const disk = fc.constantFrom(VDA, shape('sdaa'), shape('disk12'), shape('a'), shape('mail01_vda', 'chunkfs'));
/** Near the places where digits and directories change, and where 32 bits end. */
const firstLine = fc.constantFrom(0, 14, 250, 255, 65530, 0xfffff0, 0xfffffff0);

function parse(
  name: SumsShape,
  first: number,
  text: Uint8Array,
  count: number,
): { hashes: string[]; bad: number[] } {
  const words = new Uint32Array(count * 2);
  const bad: number[] = [];
  parseSums(name, first, text, { hashes: words }, (line) => bad.push(line));
  return {
    hashes: Array.from({ length: count }, (_, i) => formatHash(words[i * 2]!, words[i * 2 + 1]!)),
    bad,
  };
}

function format(name: SumsShape, first: number, hashes: readonly string[]): Buffer {
  return Buffer.from(hashes.map((one, i) => sumsLine(name, first + i, one)).join(''));
}

describe('parseSums', () => {
  it('reads what sumsLine writes', () => {
    fc.assert(
      fc.property(disk, firstLine, fc.array(hash, { maxLength: 16 }), (name, first, hashes) => {
        expect(parse(name, first, format(name, first, hashes), hashes.length)).toEqual({ hashes, bad: [] });
      }),
    );
  });

  it('reads what sumsLine writes across directories', () => {
    const hashes = Array.from({ length: 1000 }, (_, i) => formatHash(i * 3, i));
    expect(parse(VDA, 0, format(VDA, 0, hashes), 1000)).toEqual({ hashes, bad: [] });
  });

  it('takes a changed byte for a bad line, unless it changes one hash into another', () => {
    const lines = fc.array(hash, { minLength: 1, maxLength: 5 });
    fc.assert(
      fc.property(
        disk,
        firstLine,
        lines,
        fc.nat(),
        fc.nat({ max: 255 }),
        (name, first, hashes, where, byte) => {
          const text = format(name, first, hashes);
          const at = where % text.byteLength;
          fc.pre(text[at] !== byte);
          text[at] = byte;
          const line = Math.floor(at / sumsLineLength(name));
          const column = at % sumsLineLength(name);
          const { hashes: found, bad } = parse(name, first, text, hashes.length);
          if (column < 16 && /[0-9a-f]/.test(String.fromCharCode(byte))) {
            expect(bad).toEqual([]);
            expect(found[line]).not.toBe(hashes[line]);
          } else {
            expect(bad).toEqual([first + line]);
          }
          const others = (list: string[]) => list.filter((_, i) => i !== line);
          expect(others(found)).toEqual(others(hashes));
        },
      ),
      { numRuns: 500 },
    );
  });

  it('survives any bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 500 }), (bytes) => {
        const count = Math.floor(bytes.byteLength / sumsLineLength(VDA));
        const { bad } = parse(VDA, 0, bytes, count);
        expect(bad).toEqual(Array.from({ length: count }, (_, i) => i));
      }),
    );
  });

  it.each([
    ['another target', 'vdb', 0],
    ['another chunk', 'vda', 1],
    ['a chunk of another directory', 'vda', 256],
  ])('refuses the line of %s', (_, name, index) => {
    expect(parse(VDA, 0, format(shape(name), index, ['0'.repeat(16)]), 1).bad).toEqual([0]);
  });

  it('tells chunks without a file from others, where they may be, and refuses them elsewhere', () => {
    fc.assert(
      fc.property(
        disk,
        firstLine,
        fc.array(fc.tuple(hash, fc.boolean()), { maxLength: 16 }),
        (name, first, lines) => {
          const text = lines.map(([one, isSkipped], i) =>
            (isSkipped ? skippedSumsLine : sumsLine)(name, first + i, one),
          );
          const hashes = new Uint32Array(lines.length * 2);
          const skipped = new Uint8Array(lines.length);
          parseSums(name, first, Buffer.from(text.join('')), { hashes, skipped }, () => expect.unreachable());
          expect([...skipped]).toEqual(lines.map(([, isSkipped]) => Number(isSkipped)));
          expect(lines.map((_, i) => formatHash(hashes[i * 2]!, hashes[i * 2 + 1]!))).toEqual(
            lines.map(([one]) => one),
          );
          const { bad } = parse(name, first, Buffer.from(text.join('')), lines.length);
          expect(bad).toEqual(lines.flatMap(([, isSkipped], i) => (isSkipped ? [first + i] : [])));
        },
      ),
    );
  });

  it('refuses upper-case digits', () => {
    const line = format(VDA, 0, ['00000000000000ab']).toString();
    expect(parse(VDA, 0, Buffer.from(line.replace('ab', 'AB')), 1).bad).toEqual([0]);
  });
});

describe('readSums', () => {
  const content = testBytes(5 * 4096 + 17);
  const hashes = Array.from({ length: 6 }, (_, i) => xxh64(content.subarray(i * 4096, (i + 1) * 4096)));

  function open(change: (sums: string) => void): { tree: Tree; sums: string } {
    const root = path.join(temporaryDirectory(), 'demo');
    writeTree(root, { disks: [{ target: 'vda', content, chunkSize: 4096 }] });
    const sums = path.join(root, 'vda.xxh64');
    change(sums);
    return { tree: Tree.open(root), sums };
  }

  function read(change: (sums: string) => void): { hashes: string[]; lost: number[]; problems: string[] } {
    const { tree, sums } = open(change);
    try {
      const found = readSums(tree, tree.disk('vda'));
      const texts = hashes.map((_, i) => formatHash(found.hashes[i * 2]!, found.hashes[i * 2 + 1]!));
      const problems = found.problems.map(({ message }) => message.replace(sums, 'SUMS'));
      return { hashes: texts, lost: [...(found.lost ?? [])], problems };
    } finally {
      tree.close();
    }
  }

  it('reads an intact file', () => {
    expect(read(() => {})).toEqual({ hashes, lost: [], problems: [] });
  });

  it('says that the file is missing', () => {
    const { lost, problems } = read((sums) => fs.rmSync(sums));
    expect(problems).toEqual(['SUMS is missing']);
    expect(lost).toEqual([1, 1, 1, 1, 1, 1]);
  });

  it('keeps the lines of a file that is cut off', () => {
    const found = read((sums) => fs.truncateSync(sums, 2 * sumsLineLength(VDA) + 7));
    expect(found.problems).toEqual(['SUMS has 83 bytes instead of 228: it is cut off, or of another disk']);
    expect(found.lost).toEqual([0, 0, 1, 1, 1, 1]);
    expect(found.hashes.slice(0, 2)).toEqual(hashes.slice(0, 2));
  });

  it('says that a file is too long', () => {
    const { lost, problems } = read((sums) => fs.appendFileSync(sums, '\n'));
    expect(problems).toEqual(['SUMS has 229 bytes instead of 228: it is cut off, or of another disk']);
    expect(lost).toEqual([]);
  });

  it('names each damaged line', () => {
    const { lost, problems } = read((sums) => {
      const text = fs.readFileSync(sums, 'latin1').split('\n');
      fs.writeFileSync(sums, [text[0], text[2], text[1], ...text.slice(3)].join('\n'));
    });
    expect(problems).toEqual(['SUMS is damaged in line 2', 'SUMS is damaged in line 3']);
    expect(lost).toEqual([0, 1, 1, 0, 0, 0]);
  });

  it('reads a file that is too large to be read at once', () => {
    const chunkCount = 250_000;
    const root = path.join(temporaryDirectory(), 'demo');
    writeTree(root, { disks: [{ target: 'vda', content: new Uint8Array(0), look: 'skip' }] });
    editManifest(root, ({ disks }) => {
      Object.assign((disks as object[])[0]!, { size: chunkCount * 4096, chunkSize: 4096, chunkCount });
    });
    const words = Uint32Array.from({ length: chunkCount * 2 }, (_, i) => Math.imul(i, 0x9e3779b1));
    const isSkipped = (chunk: number) => chunk % 7 === 0;
    const lines = Array.from({ length: chunkCount }, (_, i) => {
      const line = isSkipped(i) ? skippedSumsLine : sumsLine;
      return line(VDA, i, formatHash(words[i * 2]!, words[i * 2 + 1]!));
    });
    lines[200_000] = lines[200_000]!.replace('vda', 'vdb');
    words.fill(0, 400_000, 400_002);
    fs.writeFileSync(path.join(root, 'vda.xxh64'), lines.join(''));
    const tree = Tree.open(root);
    const found = readSums(tree, tree.disk('vda'));
    tree.close();
    expect(Buffer.compare(Buffer.from(found.hashes.buffer), Buffer.from(words.buffer))).toBe(0);
    expect(found.skipped!.findIndex((value, i) => value !== Number(isSkipped(i)))).toBe(-1);
    expect(found.lost!.findIndex((value, i) => value !== Number(i === 200_000))).toBe(-1);
    expect(found.problems.map(({ message }) => message)).toEqual([
      `${root}/vda.xxh64 is damaged in line 200001`,
    ]);
  });

  it('does not follow a link', () => {
    const { problems } = read((sums) => {
      fs.renameSync(sums, `${sums}.real`);
      fs.symlinkSync(`${sums}.real`, sums);
    });
    expect(problems).toEqual(['SUMS is no plain file']);
  });

  it('does not hang at a FIFO', async () => {
    const { run } = await import('../../src/host/exec.js');
    const { tree, sums } = open((file) => fs.rmSync(file));
    await run('mkfifo', [sums]);
    expect(readSums(tree, tree.disk('vda')).problems.map(({ message }) => message)).toEqual([
      `${sums} is no plain file`,
    ]);
    tree.close();
  });
});
