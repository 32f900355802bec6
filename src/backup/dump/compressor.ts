import { requireProgram } from '../../host/command-error.js';

/** A program that compresses its standard input to its standard output. */
export interface Compressor {
  readonly program: string;
  readonly args: readonly string[];
  /** Goes behind the image's own extension. */
  readonly extension: string;
}

/** `-T0`: as many threads as there are processors. */
const COMPRESSORS: readonly Compressor[] = [
  { program: 'gzip', args: ['-c'], extension: '.gz' },
  { program: 'pigz', args: ['-c'], extension: '.gz' },
  { program: 'bzip2', args: ['-c'], extension: '.bz2' },
  { program: 'pbzip2', args: ['-c'], extension: '.bz2' },
  { program: 'lzop', args: ['-c'], extension: '.lzo' },
  { program: 'xz', args: ['-c', '-T0'], extension: '.xz' },
  { program: 'lzip', args: ['-c'], extension: '.lz' },
  { program: 'plzip', args: ['-c'], extension: '.lz' },
  { program: 'zstd', args: ['-c', '-q', '-T0'], extension: '.zst' },
];

export const COMPRESSOR_NAMES: readonly string[] = COMPRESSORS.map(({ program }) => program);

/** The compressor called `name`, one of COMPRESSOR_NAMES. Throws, naming the package, if it is not installed. */
export function findCompressor(name: string): Compressor {
  const found = COMPRESSORS.find(({ program }) => program === name);
  if (found === undefined) throw new RangeError(`no compressor ${name}`);
  requireProgram(found.program);
  return found;
}
