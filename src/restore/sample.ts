/**
 * Which chunks to look at when only a share of them shall be read: evenly spaced ones, beginning anywhere, so that another
 * sample looks at others. `share` is above 0 and at most 1; `start`, from 0 up to 1, says where it begins.
 */
export interface Sample {
  readonly share: number;
  readonly start: number;
}

export const EVERYTHING: Sample = { share: 1, start: 0 };

/** Whether the sample holds chunk `index`. Of n chunks it holds n × share, give or take one. */
export function isSampled({ share, start }: Sample, index: number): boolean {
  return Math.floor(index * share + start) !== Math.floor((index + 1) * share + start);
}
