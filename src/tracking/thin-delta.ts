import { failed } from '../errors.js';
import { runLines } from '../host/exec.js';
import type { ByteRange } from '../image/own-ranges.js';
import type { Mapped } from '../snapshot/lvm/pool.js';

const SECTOR = 512;

/** As many ranges are told, at most. Beyond that, those that are close to each other become one. */
const MAX_RANGES = 50_000;

/** One tag: its name, its attributes, and whether it is a closing or an empty one. */
const TAG = /^\s*<(\/?)([a-z_]+)((?: [a-z_]+="[^"<>&]*")*)(\/?)>\s*$/;
const ATTRIBUTE = / ([a-z_]+)="([^"]*)"/g;

const CHANGED: ReadonlySet<string> = new Set(['different', 'left_only', 'right_only']);
/** All that a volume has, when it is compared with itself. */
const SAME: ReadonlySet<string> = new Set(['same']);

interface Tag {
  readonly kind: 'open' | 'close' | 'empty';
  readonly name: string;
  readonly attributes: ReadonlyMap<string, string>;
}

/** Which two volumes of a pool are compared. */
export interface DeltaRequest {
  readonly left: number;
  readonly right: number;
  /** Bytes of a block of the pool, as the kernel has it. */
  readonly blockSize: number;
}

export interface DeltaOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** Ranges in order; keeps their number in bounds by taking in what lies between neighbours. */
class RangeList {
  ranges: { start: number; end: number }[] = [];
  #gap = 0;

  constructor(private readonly most: number) {}

  add(start: number, end: number): void {
    const last = this.ranges.at(-1);
    if (last !== undefined && start - last.end <= this.#gap) last.end = end;
    else this.ranges.push({ start, end });
    while (this.ranges.length > this.most) this.#widen();
  }

  #widen(): void {
    const before = this.ranges;
    const closest = before
      .slice(1)
      .reduce((gap, { start }, index) => Math.min(gap, start - before[index]!.end), Infinity);
    this.#gap = Math.max(2 * this.#gap, closest);
    this.ranges = [];
    for (const { start, end } of before) this.add(start, end);
  }
}

function unexpected(line: string): Error {
  return failed(`thin_delta gave an unexpected answer: ${JSON.stringify(line.slice(0, 200))}`);
}

function tagOf(line: string): Tag {
  const [, close, name, attributes, empty] = TAG.exec(line) ?? [];
  if (name === undefined || (close !== '' && (empty !== '' || attributes !== ''))) throw unexpected(line);
  const pairs = [...attributes!.matchAll(ATTRIBUTE)].map(([, key, value]) => [key!, value!] as const);
  const map = new Map(pairs);
  if (map.size !== pairs.length) throw unexpected(line);
  return { kind: close !== '' ? 'close' : empty !== '' ? 'empty' : 'open', name, attributes: map };
}

/**
 * Reads what thin_delta prints, which is XML with a tag on each line, a line at a time: there can be millions of them. Whatever it is
 * not sure to understand is an error.
 */
export class DeltaParser {
  #list: RangeList;
  /** What has been read: nothing, <superblock>, <diff> in it, the end of <diff>, the end of <superblock>. */
  #place: 'begin' | 'superblock' | 'diff' | 'after' | 'end' = 'begin';
  /** Where the last element ended, in blocks. */
  #block = 0;
  #last = 0;
  #blocks = 0;

  /** `wanted`: the names of the elements that count. */
  constructor(
    private readonly request: DeltaRequest,
    most = MAX_RANGES,
    private readonly wanted = CHANGED,
  ) {
    this.#list = new RangeList(most);
  }

  /** Takes one line, without its end. Throws for what it does not expect. */
  add(line: string): void {
    if (line.trim() === '') return;
    const tag = tagOf(line);
    const step = `${this.#place} ${tag.kind} ${tag.name}`;
    if (step === 'begin open superblock') {
      this.#expect(tag, 'data_block_size', this.request.blockSize / SECTOR, line);
      this.#place = 'superblock';
    } else if (step === 'superblock open diff') {
      this.#expect(tag, 'left', this.request.left, line);
      this.#expect(tag, 'right', this.request.right, line);
      this.#place = 'diff';
    } else if (step === 'diff close diff') this.#place = 'after';
    else if (step === 'after close superblock') this.#place = 'end';
    else if (this.#place === 'diff' && tag.kind === 'empty') this.#element(tag, line);
    else throw unexpected(line);
  }

  /** How much the elements hold that count, whatever became of their ranges. */
  get mapped(): Mapped {
    const { blockSize } = this.request;
    return { bytes: this.#blocks * blockSize, end: this.#last * blockSize };
  }

  /** What changed, in bytes; throws if there is more to come. */
  end(): ByteRange[] {
    if (this.#place !== 'end') throw failed('thin_delta gave an answer without an end');
    return this.#list.ranges;
  }

  #element(tag: Tag, line: string): void {
    const begin = this.#number(tag, 'begin', line);
    const length = this.#number(tag, 'length', line);
    const { blockSize } = this.request;
    const end = begin + length;
    if (tag.attributes.size !== 2 || begin < this.#block || length === 0) throw unexpected(line);
    if (!Number.isSafeInteger(end * blockSize)) throw unexpected(line);
    this.#block = end;
    if (tag.name !== 'same' && !CHANGED.has(tag.name)) throw unexpected(line);
    if (!this.wanted.has(tag.name)) return;
    this.#list.add(begin * blockSize, end * blockSize);
    this.#blocks += length;
    this.#last = end;
  }

  #number({ attributes }: Tag, name: string, line: string): number {
    const text = attributes.get(name) ?? '';
    if (!/^[0-9]{1,15}$/.test(text)) throw unexpected(line);
    return Number(text);
  }

  #expect(tag: Tag, name: string, value: number, line: string): void {
    if (this.#number(tag, name, line) !== value) throw unexpected(line);
  }
}

async function parse(
  device: string,
  request: DeltaRequest,
  parser: DeltaParser,
  options: DeltaOptions,
): Promise<ByteRange[]> {
  const { left, right } = request;
  const args = ['--metadata-snap', '--snap1', String(left), '--snap2', String(right), device];
  for await (const line of runLines('thin_delta', args, options)) parser.add(line);
  return parser.end();
}

/** What differs between two thin volumes, by the metadata snapshot that is reserved on a device. Throws where anything is odd. */
export function thinDelta(
  device: string,
  request: DeltaRequest,
  options: DeltaOptions,
): Promise<ByteRange[]> {
  return parse(device, request, new DeltaParser(request), options);
}

/**
 * What a thin volume has blocks for, by the metadata snapshot that is reserved on a device: what is the same in it and itself. The ranges
 * may hold more than that, so that there are not too many. Throws where anything is odd.
 */
export async function thinMappings(
  device: string,
  { volume, blockSize }: { readonly volume: number; readonly blockSize: number },
  options: DeltaOptions,
): Promise<{ readonly ranges: readonly ByteRange[]; readonly mapped: Mapped }> {
  const request = { left: volume, right: volume, blockSize };
  const parser = new DeltaParser(request, MAX_RANGES, SAME);
  const ranges = await parse(device, request, parser, options);
  return { ranges, mapped: parser.mapped };
}
