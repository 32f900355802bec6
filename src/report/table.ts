import Table from 'cli-table3';

const BORDERS = ['top', 'top-mid', 'top-left', 'top-right', 'bottom', 'bottom-mid', 'bottom-left'].concat([
  'bottom-right',
  'left',
  'left-mid',
  'mid',
  'mid-mid',
  'right',
  'right-mid',
]);

/** Only spaces between columns: it can be read, cut and grepped. */
const PLAIN = {
  chars: { ...Object.fromEntries(BORDERS.map((name) => [name, ''])), middle: '  ' },
  style: { 'padding-left': 0, 'padding-right': 0, head: [], border: [] },
};

/** What terminals understand as colours and does not take up room: SGR sequences, ECMA-48 8.3.117. */
const COLOURS = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, 'g');

function widthOf(line: string): number {
  return [...line.replace(COLOURS, '')].length;
}

/** A line a row, columns aligned. */
function columns(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const table = new Table({ ...PLAIN, head: [...head] });
  table.push(...rows.map((row) => [...row]));
  return table
    .toString()
    .split('\n')
    .map((line) => line.trimEnd());
}

/** A line a cell; the first two are the title of the row. */
function blocks(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const longest = Math.max(...head.map((title) => title.length));
  return rows.flatMap(([name, state, ...others], position) => [
    ...(position === 0 ? [] : ['']),
    `${name}: ${state}`,
    ...others.map((text, column) => `  ${head[column + 2]!.toLowerCase().padEnd(longest)}  ${text}`),
  ]);
}

/**
 * Lines of a table, for people: the first two columns say what a row is about. One that does not fit into `width` characters becomes
 * a block of lines for each row.
 */
export function tableLines(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  width = Number.POSITIVE_INFINITY,
): string[] {
  const lines = columns(head, rows);
  return lines.every((line) => widthOf(line) <= width) ? lines : blocks(head, rows);
}
