import { parseArgs } from 'node:util';

const UNITS = ['', 'K', 'M', 'G', 'T'];

/** Bytes of `256M`, `4G`, `0`. */
export function parseSize(text, option) {
  const match = /^([0-9]{1,12})([KMGT]?)$/i.exec(text);
  if (match === null) throw new Error(`--${option}=${text} is no size: give it like 256M or 4G`);
  return Number(match[1]) * 1024 ** UNITS.indexOf(match[2].toUpperCase());
}

/** What the command line asks for; sizes in bytes. Throws for what is not understood. */
export function parseOptions(args) {
  const { values } = parseArgs({
    args,
    options: {
      size: { type: 'string', default: '4G' },
      rounds: { type: 'string', default: '3' },
      sparse: { type: 'string', default: '10T' },
      dir: { type: 'string', default: '/var/tmp' },
    },
  });
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1)
    throw new Error(`--rounds=${values.rounds} is no number from 1 on`);
  const size = parseSize(values.size, 'size');
  if (size < 64 * 1024 ** 2 || size % 1024 ** 2 !== 0) {
    throw new Error(`--size=${values.size} is too small, or no whole number of MiB: 64M is the least`);
  }
  return { size, rounds, sparse: parseSize(values.sparse, 'sparse'), directory: values.dir };
}
