import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { chunkLength, geometry } from '../../src/chunks/geometry.js';
import { LEAST_SAMPLES, pickSamples, type SampleRequest } from '../../src/content-index/pick-samples.js';
import { ExtentMapBuilder } from '../../src/image/extent-map-builder.js';
import { CHUNK } from './sample-index.js';

/** A disk of pieces of data and of zeros in turn, of that many bytes each; the first may be of none. */
function request(pieces: readonly number[], share: number, changed: SampleRequest['changed'] = []) {
  const builder = new ExtentMapBuilder();
  for (const [number, length] of pieces.entries()) {
    if (number % 2 === 0) builder.addData(length, 0, builder.end);
    else builder.addZeros(length);
  }
  const extents = builder.finish();
  return { disk: geometry(extents.size, CHUNK), extents, changed, share };
}

function holdsData({ disk, extents }: SampleRequest, chunk: number): boolean {
  return !extents.isZero(chunk * CHUNK, chunkLength(disk, chunk));
}

const pieces = fc.array(
  fc.nat(20).chain((chunks) => fc.nat(CHUNK - 1).map((rest) => chunks * CHUNK + rest)),
  { maxLength: 12 },
);

describe('pickSamples', () => {
  it('takes chunks that hold data and did not change, each once', () => {
    fc.assert(
      fc.property(pieces, fc.double({ min: 0, max: 1, noNaN: true }), fc.nat(50), (lengths, share, first) => {
        const asked = request(lengths, share, [{ first, end: first + 5 }]);
        const samples = [...pickSamples(asked)];
        expect(samples).toEqual([...new Set(samples)].sort((a, b) => a - b));
        for (const chunk of samples) {
          expect(chunk < first || chunk >= first + 5).toBe(true);
          expect(holdsData(asked, chunk)).toBe(true);
        }
      }),
    );
  });

  it('takes all that there are and did not change when all are asked for', () => {
    fc.assert(
      fc.property(pieces, fc.nat(50), (lengths, first) => {
        const asked = request(lengths, 1, [{ first, end: first + 5 }]);
        const all = Array.from({ length: asked.disk.chunkCount }, (_, chunk) => chunk);
        const wanted = all.filter((chunk) => chunk < first || chunk >= first + 5);
        expect([...pickSamples(asked)]).toEqual(wanted.filter((chunk) => holdsData(asked, chunk)));
      }),
    );
  });

  it('takes some however small the share is, and that share of a large disk', () => {
    const large = [CHUNK * 20_000];
    expect(pickSamples(request(large, 0)).length).toBe(LEAST_SAMPLES);
    expect(pickSamples(request(large, 0.005)).length).toBe(100);
    expect(pickSamples(request([CHUNK * 3], 0)).length).toBeGreaterThan(0);
    expect(pickSamples(request([0, CHUNK * 3], 0.5)).length).toBe(0);
  });

  it('spreads them over the data, differently each time', () => {
    const asked = request([CHUNK * 100, CHUNK * 1_000_000, CHUNK * 100], 0.1);
    const once = [...pickSamples(asked)];
    expect(once.filter((chunk) => chunk < 100).length).toBe(10);
    expect(new Set(once.map((chunk) => Math.floor(chunk / 10))).size).toBe(20);
    expect([...pickSamples(asked)]).not.toEqual(once);
  });
});
