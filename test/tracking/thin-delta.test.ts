import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { BRIEF_SECONDS } from '../../src/session/lock.js';
import { patienceWith } from '../../src/tracking/thin.js';
import { DeltaParser, thinDelta, thinMappings } from '../../src/tracking/thin-delta.js';
import { temporaryDirectory } from '../support/images.js';

const BLOCK = 65536;
const REQUEST = { left: 2, right: 3, blockSize: BLOCK };
const HEAD = [
  '<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">',
  '  <diff left="2" right="3">',
];
const TAIL = ['  </diff>', '</superblock>'];

interface Element {
  readonly name: string;
  readonly begin: number;
  readonly length: number;
}

const line = ({ name, begin, length }: Element) => `    <${name} begin="${begin}" length="${length}"/>`;

/** What a parser makes of some lines. */
function parse(lines: readonly string[], most?: number) {
  const parser = new DeltaParser(REQUEST, most);
  for (const text of lines) parser.add(text);
  return parser.end();
}

/** Elements in order, with gaps between them or without: as thin_delta prints them. */
const elements = fc
  .array(
    fc.record({
      name: fc.constantFrom('same', 'different', 'left_only', 'right_only'),
      gap: fc.nat(3),
      length: fc.integer({ min: 1, max: 5 }),
    }),
    { maxLength: 60 },
  )
  .map((all) => {
    let at = 0;
    return all.map(({ name, gap, length }): Element => {
      const begin = at + gap;
      at = begin + length;
      return { name, begin, length };
    });
  });

const changedBlocks = (all: readonly Element[]) =>
  all.flatMap(({ name, begin, length }) =>
    name === 'same' ? [] : Array.from({ length }, (_, index) => begin + index),
  );

describe('what thin_delta prints', () => {
  it('becomes the ranges that changed, in order and apart from each other', () => {
    fc.assert(
      fc.property(elements, (all) => {
        const ranges = parse([...HEAD, ...all.map(line), ...TAIL]);
        const blocks = ranges.flatMap(({ start, end }) =>
          Array.from({ length: (end - start) / BLOCK }, (_, index) => start / BLOCK + index),
        );
        expect(blocks).toEqual(changedBlocks(all));
        ranges.slice(1).forEach(({ start }, index) => {
          expect(start).toBeGreaterThan(ranges[index]!.end);
        });
      }),
    );
  });

  it('becomes fewer ranges that hold as much, if there are too many', () => {
    fc.assert(
      fc.property(elements, fc.integer({ min: 1, max: 5 }), (all, most) => {
        const ranges = parse([...HEAD, ...all.map(line), ...TAIL], most);
        expect(ranges.length).toBeLessThanOrEqual(most);
        for (const block of changedBlocks(all)) {
          expect(ranges.some(({ start, end }) => start <= block * BLOCK && (block + 1) * BLOCK <= end)).toBe(
            true,
          );
        }
      }),
    );
  });

  it('is taken in quickly when there are hundreds of thousands of elements', () => {
    const parser = new DeltaParser(REQUEST);
    for (const text of HEAD) parser.add(text);
    for (let number = 0; number < 400_000; number++)
      parser.add(line({ name: 'different', begin: number * 7 + (number % 3), length: 1 }));
    for (const text of TAIL) parser.add(text);
    const ranges = parser.end();
    expect(ranges.length).toBeLessThanOrEqual(50_000);
    expect(ranges.at(-1)!.end).toBe((399_999 * 7 + 1) * BLOCK);
  });

  it('is refused when it was cut off, wherever', () => {
    const whole = [...HEAD, line({ name: 'same', begin: 0, length: 4 }), ...TAIL].join('\n');
    fc.assert(
      fc.property(fc.nat(whole.length - '>'.length), (length) => {
        expect(() => parse(whole.slice(0, length).split('\n'))).toThrow(ChunkmountError);
      }),
    );
  });

  it.each([
    ['other volumes', [HEAD[0]!, '<diff left="2" right="4">', ...TAIL]],
    ['blocks of another size', [HEAD[0]!.replace('128', '256'), HEAD[1]!, ...TAIL]],
    ['an element of another kind', [...HEAD, '<moved begin="0" length="1"/>', ...TAIL]],
    ['an element with more than we know', [...HEAD, '<same begin="0" length="1" data="7"/>', ...TAIL]],
    ['an element with less', [...HEAD, '<different begin="0"/>', ...TAIL]],
    ['elements inside of others', [...HEAD, '<different begin="0" length="1">', ...TAIL]],
    [
      'elements out of order',
      [...HEAD, ...[5, 1].map((begin) => line({ name: 'same', begin, length: 1 })), ...TAIL],
    ],
    [
      'elements that overlap',
      [...HEAD, ...[1, 2].map((begin) => line({ name: 'same', begin, length: 2 })), ...TAIL],
    ],
    [
      'elements that changed and overlap',
      [...HEAD, ...[1, 2].map((begin) => line({ name: 'different', begin, length: 2 })), ...TAIL],
    ],
    ['no blocks', [...HEAD, '<different begin="1" length="0"/>', ...TAIL]],
    ['numbers that are too large', [...HEAD, '<different begin="1" length="999999999999999"/>', ...TAIL]],
    ['numbers that are none', [...HEAD, '<different begin="-1" length="0x1"/>', ...TAIL]],
    ['an attribute twice', [...HEAD, '<different begin="1" begin="2" length="1"/>', ...TAIL]],
    ['two comparisons', [...HEAD, '</diff>', HEAD[1]!, ...TAIL]],
    ['something behind the end', [...HEAD, ...TAIL, '<x/>']],
    ['an entity', [...HEAD, '<different begin="&#49;" length="1"/>', ...TAIL]],
    ['a document type', ['<!DOCTYPE superblock>', ...HEAD, ...TAIL]],
  ])('is refused with %s', (_what, lines) => {
    expect(() => parse(lines)).toThrow(/^thin_delta gave an unexpected answer/);
  });

  it('is refused, or understood, whatever it is', () => {
    const piece = fc.oneof(
      fc.constantFrom(...HEAD, ...TAIL),
      elements.map((all) => all.map(line).join('\n')),
      fc.string(),
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 8 }), (pieces) => {
        try {
          parse(pieces.join('\n').split('\n'));
        } catch (error) {
          expect(error).toBeInstanceOf(ChunkmountError);
        }
      }),
    );
  });
});

describe('thin_delta', () => {
  let directory: string;
  const { PATH } = process.env;
  const PATIENCE = { timeoutMs: 60_000 };
  beforeEach(() => {
    directory = temporaryDirectory();
  });
  afterEach(() => {
    process.env.PATH = PATH;
    fs.rmSync(directory, { recursive: true });
  });

  /** Puts a program of that name first on PATH. */
  function install(script: string): void {
    fs.writeFileSync(path.join(directory, 'thin_delta'), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    process.env.PATH = `${directory}:${PATH}`;
  }

  const answer = [...HEAD, line({ name: 'right_only', begin: 1, length: 2 }), ...TAIL].join('\n');

  it('is given the device and both numbers', async () => {
    const file = path.join(directory, 'arguments');
    install(`echo "$@" >'${file}'; cat <<'END'\n${answer}\nEND`);
    expect(await thinDelta('/dev/x_tmeta', REQUEST, PATIENCE)).toEqual([{ start: BLOCK, end: 3 * BLOCK }]);
    expect(fs.readFileSync(file, 'utf8')).toBe('--metadata-snap --snap1 2 --snap2 3 /dev/x_tmeta\n');
  });

  it('tells what a volume has when it is compared with itself, and how much that is', async () => {
    const same = [
      { name: 'same', begin: 1, length: 2 },
      { name: 'different', begin: 4, length: 1 },
      { name: 'same', begin: 7, length: 3 },
    ];
    const lines = [HEAD[0]!, HEAD[1]!.replace('2', '3'), ...same.map(line), ...TAIL];
    install(`cat <<'END'\n${lines.join('\n')}\nEND`);
    expect(await thinMappings('/dev/x_tmeta', { volume: 3, blockSize: BLOCK }, PATIENCE)).toEqual({
      ranges: [
        { start: BLOCK, end: 3 * BLOCK },
        { start: 7 * BLOCK, end: 10 * BLOCK },
      ],
      // Of which the kernel knows better: see thin-mapped.ts.
      mapped: { bytes: 5 * BLOCK, end: 10 * BLOCK },
    });
    install(`cat <<'END'\n${answer}\nEND`);
    const other = thinMappings('/dev/x_tmeta', { volume: 3, blockSize: BLOCK }, PATIENCE);
    await expect(other).rejects.toThrow('unexpected answer');
  });

  it('that fails after a whole answer is not believed', async () => {
    install(`cat <<'END'\n${answer}\nEND\necho broken >&2; exit 1`);
    await expect(thinDelta('/dev/x_tmeta', REQUEST, PATIENCE)).rejects.toThrow('thin_delta failed: broken');
  });

  it('that is killed is not believed', async () => {
    install(`cat <<'END'\n${answer}\nEND\nkill -9 $$`);
    await expect(thinDelta('/dev/x_tmeta', REQUEST, PATIENCE)).rejects.toThrow(
      'thin_delta was ended by SIGKILL',
    );
  });

  it('that takes longer than it may is ended', async () => {
    install('exec sleep 600');
    const slow = thinDelta('/dev/x_tmeta', REQUEST, { timeoutMs: 50 });
    await expect(slow).rejects.toThrow('thin_delta took too long and was ended');
  });

  it('that nobody waits for any more is ended', async () => {
    install('exec sleep 600');
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 200);
    const slow = thinDelta('/dev/x_tmeta', REQUEST, { ...PATIENCE, signal: abort.signal });
    const began = Date.now();
    await expect(slow).rejects.toThrow();
    expect(Date.now() - began).toBeLessThan(PATIENCE.timeoutMs / 2);
  });

  it('of estimate is ended before those give up who wait for its lock, though it is run twice', () => {
    const estimate = patienceWith({ live: { virsh: new Virsh({}), uuid: 'x' } });
    expect(estimate.waitSeconds).toBe(0);
    expect(2 * estimate.timeoutMs).toBeLessThan(BRIEF_SECONDS * 1000);
    const session = patienceWith({});
    expect(session.waitSeconds * 1000).toBeGreaterThanOrEqual(session.timeoutMs);
  });

  it('that is not installed is missed', async () => {
    process.env.PATH = directory;
    await expect(thinDelta('/dev/x_tmeta', REQUEST, PATIENCE)).rejects.toThrow('thin_delta is not installed');
  });
});
