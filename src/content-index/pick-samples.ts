import { chunkLength, type Geometry } from '../chunks/geometry.js';
import { type ExtentMap, ZERO_SOURCE } from '../image/extent-map.js';

/** However small the share is: a tracker that is wrong everywhere is found out. */
export const LEAST_SAMPLES = 16;

/** Chunks from `first` up to `end`. */
export interface ChunkRange {
  readonly first: number;
  readonly end: number;
}

export interface SampleRequest {
  readonly disk: Geometry;
  readonly extents: ExtentMap;
  /** In order; none of them is a sample. */
  readonly changed: readonly ChunkRange[];
  /** 0 to 1, of the chunks that hold data. */
  readonly share: number;
}

/** How many chunks that hold data a sample has. */
export function sampleCount({ disk, extents, share }: Omit<SampleRequest, 'changed'>): number {
  const chunks = Math.ceil(extents.dataBytes / disk.chunkSize);
  return Math.min(disk.chunkCount, Math.max(Math.min(LEAST_SAMPLES, chunks), Math.ceil(chunks * share)));
}

/**
 * Chunks to compare with their rows: the data is cut into pieces of one length, and one chunk taken from anywhere in each. In
 * ascending order, each once; others the next time. Those that are zeros anyway are left out.
 */
export function pickSamples(request: SampleRequest, random: () => number = Math.random): Uint32Array {
  const { disk, extents } = request;
  if (request.share === 1) return shared(allSamples(request));
  const count = sampleCount(request);
  const piece = extents.dataBytes / count;
  const isChanged = rangeTest(request.changed);
  const found: number[] = [];
  let last = -1;
  let taken = 0;
  // In bytes of data: zeros do not count.
  let wanted = Math.floor(random() * piece);
  let passed = 0;
  for (let extent = 0; extent < extents.count; extent++) {
    if (extents.sourceOf(extent) === ZERO_SOURCE) continue;
    const start = extents.startOf(extent);
    const length = extents.endOf(extent) - start;
    while (taken < count && wanted < passed + length) {
      // Two positions can be in one chunk: then the one after it is taken.
      const chunk = Math.max(Math.floor((start + wanted - passed) / disk.chunkSize), last + 1);
      if (holdsData(request, chunk) && !isChanged(chunk)) {
        found.push(chunk);
        last = chunk;
      }
      taken++;
      wanted = Math.floor((taken + random()) * piece);
    }
    passed += length;
  }
  return shared(found);
}

function shared(chunks: readonly number[]): Uint32Array {
  const samples = new Uint32Array(new SharedArrayBuffer(chunks.length * 4));
  samples.set(chunks);
  return samples;
}

function allSamples(request: SampleRequest): number[] {
  const isChanged = rangeTest(request.changed);
  const found: number[] = [];
  for (let chunk = 0; chunk < request.disk.chunkCount; chunk++)
    if (holdsData(request, chunk) && !isChanged(chunk)) found.push(chunk);
  return found;
}

function holdsData({ disk, extents }: SampleRequest, chunk: number): boolean {
  return chunk < disk.chunkCount && !extents.isZero(chunk * disk.chunkSize, chunkLength(disk, chunk));
}

/** To be asked in ascending order. */
function rangeTest(ranges: readonly ChunkRange[]): (chunk: number) => boolean {
  let at = 0;
  return (chunk) => {
    while (at < ranges.length && ranges[at]!.end <= chunk) at++;
    return at < ranges.length && ranges[at]!.first <= chunk;
  };
}
