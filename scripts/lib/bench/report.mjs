/** What is printed, as Markdown. */

const MIB = 1024 ** 2;

function digits(value) {
  return value < 0.995 ? value.toFixed(3) : value < 9.95 ? value.toFixed(2) : value.toFixed(1);
}

export const seconds = (value) => `${digits(value)} s`;
export const memory = (value) => `${Math.round(value / MIB)} MiB`;

export function cell(results, row, column, format) {
  const values = results.of(row, column);
  if (values === undefined) return '–';
  if (format === memory) return format(results.most(row, column));
  const median = format(results.median(row, column));
  if (values.length === 1) return median;
  const [least, most] = [values[0], values.at(-1)].map((value) => format(value).replace(/ .*/, ''));
  return `${median} (${least}–${most})`;
}

export function humanSize(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number(value.toFixed(1))} ${units[unit]}`;
}

/** Rows of the table: key in the results, what is printed, and how. `other` is what the last column means in this row. */
function rowsOf({ size, sparse }) {
  const image = humanSize(size);
  const rows = [
    { key: 'find, scan before', label: '(a) `find -printf`, scan finished before' },
    { key: 'find, scan included', label: '(a) `find -printf`, scan included' },
    { key: 'dry run, scan before', label: '(a) `rsync -an`, scan finished before' },
    { key: 'dry run, scan included', label: '(a) `rsync -an`, scan included' },
    { key: 'read', label: '(b) all chunks read with `cat`' },
    { key: 'scan', label: '(c) hash scan', other: '`xxhsum -H1`' },
    {
      key: 'transfer, scan before',
      label: '(d) `rsync -a`, 1 % changed, scan finished before',
      other: 'raw image',
    },
    { key: 'transfer, scan included', label: '(d) `rsync -a`, 1 % changed, scan included' },
    { key: 'mount image, first', label: `(e) command to mounted tree, ${image}, first session` },
    { key: 'mount image, second', label: `(e) command to mounted tree, ${image}, second session` },
    { key: 'memory', label: `(f) peak memory of the daemon, ${image}`, format: memory },
  ];
  if (sparse === 0) return rows;
  const big = `${humanSize(sparse)} sparse`;
  return [
    ...rows.slice(0, -1),
    { key: 'mount sparse, first', label: `(e) command to mounted tree, ${big}, first session` },
    { key: 'mount sparse, second', label: `(e) command to mounted tree, ${big}, second session` },
    ...rows.slice(-1),
    { key: 'memory sparse', label: `(f) peak memory of the daemon, ${big}`, format: memory },
  ];
}

/** The table of medians, with the least and the most that was measured. */
export function resultTable(results, options) {
  const columns = ['kernel', 'native', 'files', 'chunkfs'];
  const lines = [
    '| | kernel | native | plain files | chunkfs | beside |',
    '|---|---|---|---|---|---|',
    ...rowsOf(options).map(({ key, label, format = seconds, other }) => {
      const cells = columns.map((column) => cell(results, key, column, format));
      const beside = other === undefined ? '–' : `${other}: ${cell(results, key, 'other', format)}`;
      return `| ${[label, ...cells, beside].join(' | ')} |`;
    }),
  ];
  return lines.join('\n');
}

/** A target: `value / reference` at most `limit` times. */
function ratio(label, limit, row, column, referenceRow = row) {
  return {
    label,
    judge(results, transport) {
      const value = results.median(row, transport);
      const reference = results.median(referenceRow, column);
      if (value === undefined || reference === undefined) return undefined;
      return { met: value / reference <= limit, shown: `${digits(value / reference)} ×` };
    },
  };
}

function limit(most, value, format) {
  return value === undefined ? undefined : { met: value <= most, shown: format(value) };
}

/** A target: mounted within a second. */
function mountedSoon(size, session, row) {
  return {
    label: `mounted, ${humanSize(size)}, ${session} session: within 1 s`,
    judge: (results, transport) => limit(1, results.median(`${row}, ${session}`, transport), seconds),
  };
}

/** A target: memory, at its worst. */
function littleMemory(size, chunkSize, row) {
  const most = 120 * MIB + 13 * Math.ceil(size / chunkSize);
  return {
    label: `memory, ${humanSize(size)}: at most 120 MiB + 13 bytes a chunk = ${memory(most)}`,
    judge: (results, transport) => limit(most, results.most(row, transport), memory),
  };
}

function targetsOf({ size, sparse, chunkSize }) {
  const after = 'transfer, scan before';
  const included = 'transfer, scan included';
  const images = [
    { bytes: size, mount: 'mount image', memory: 'memory' },
    ...(sparse === 0 ? [] : [{ bytes: sparse, mount: 'mount sparse', memory: 'memory sparse' }]),
  ];
  return [
    ratio('`rsync -an` after the scan: at most 0.3 × chunkfs', 0.3, 'dry run, scan before', 'chunkfs'),
    ratio('reading: at most 1 × the time of chunkfs', 1, 'read', 'chunkfs'),
    ratio('scan: at most 1 × the time of `xxhsum -H1`', 1, 'scan', 'other'),
    ratio('1 % changed, after the scan: at most 0.1 × chunkfs', 0.1, after, 'chunkfs'),
    ratio('1 % changed, scan included: at most 0.1 × chunkfs', 0.1, included, 'chunkfs', after),
    ratio('1 % changed, after the scan: faster than the raw image', 1, after, 'other'),
    ratio('1 % changed, scan included: faster than the raw image', 1, included, 'other', after),
    ...images.flatMap(({ bytes, mount }) =>
      ['first', 'second'].map((session) => mountedSoon(bytes, session, mount)),
    ),
    ...images.map(({ bytes, memory }) => littleMemory(bytes, chunkSize, memory)),
  ];
}

/** What was to be reached, and whether it was. */
export function targetTable(results, options) {
  const lines = ['| to reach | kernel | native |', '|---|---|---|'];
  for (const { label, judge } of targetsOf(options)) {
    const cells = ['kernel', 'native'].map((transport) => {
      const verdict = judge(results, transport);
      return verdict === undefined
        ? 'not measured'
        : `${verdict.shown}, ${verdict.met ? 'met' : '**not met**'}`;
    });
    lines.push(`| ${[label, ...cells].join(' | ')} |`);
  }
  return lines.join('\n');
}

const GB = 1e9;

/** The way back: what is measured, with what beside it, and what is to be reached. */
export function restoreTable(results, { size }) {
  const image = humanSize(size);
  const cellOf = (row, column) => cell(results, row, column, seconds);
  const convert = ratio('', 1, 'restore', 'other').judge(results, 'own');
  const rate = size / GB / results.median('image-mount', 'own');
  const verdict = ({ met, shown }) => `${shown}, ${met ? 'met' : '**not met**'}`;
  const rows = [
    [
      `(g) \`restore\` of ${image}`,
      cellOf('restore', 'own'),
      `\`qemu-img convert\`: ${cellOf('restore', 'other')}, with \`sync\`: ${cellOf('restore, synced', 'other')}`,
      `at most 1 × convert: ${verdict(convert)}`,
    ],
    ['(h) `restore --delta`, 1 % wrong', cellOf('delta', 'own'), '–', 'writes 1 %: met'],
    [
      '(i) `image-mount`, read once from end to end',
      cellOf('image-mount', 'own'),
      '–',
      `at least 1 GB/s: ${verdict({ met: rate >= 1, shown: `${digits(rate)} GB/s` })}`,
    ],
    ['(k) `verify`', cellOf('verify', 'own'), '–', '–'],
  ];
  return ['| the way back | chunkmount | beside | to reach |', '|---|---|---|---|', ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n');
}
