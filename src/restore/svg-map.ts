import { escapeXml } from '../libvirt/xml.js';
import { type DiskMap, shade } from './disk-map.js';

/** One disk's part of the picture. Labels are ready for people. */
export interface SvgDisk {
  /** `vda: 12 of 4096 chunks changed`. */
  readonly title: string;
  /** `each square stands for 4 chunks (1.0 MiB)`. */
  readonly scale: string;
  readonly map: DiskMap;
  /** What the tooltip of a run of cells says: `10.0 GiB to 10.5 GiB`. */
  readonly describe: (firstCell: number, endCell: number) => string;
}

/** Cells a row and at most in all: of 6 pixels each they make a picture that fits a screen. */
const COLUMNS = 128;
export const MAX_SVG_CELLS = COLUMNS * 96;

const CELL = 6;
const MARGIN = 16;
const LINE = 20;
/** From nothing changed to all changed. The lightness falls evenly, so it can be read without seeing colours. */
const COLOURS = ['#e4e8ec', '#fdd49e', '#fc8d59', '#d7301f', '#7f0000'];
const LEGEND = ['unchanged', 'up to 25 % changed', 'up to 50 %', 'up to 75 %', 'more'];
const WIDTH = COLUMNS * CELL + 2 * MARGIN;

function text(x: number, y: number, content: string, attributes = ''): string {
  return `<text x="${x}" y="${y}"${attributes}>${escapeXml(content)}</text>`;
}

/** Runs of cells of one row and one shade, without those in which nothing changed. */
function* runs(map: DiskMap): Generator<{ first: number; end: number; shade: number }, void, undefined> {
  const { cells } = map;
  let first = 0;
  for (let cell = 1; cell <= cells.length; cell++) {
    const level = shade(cells[first]!);
    if (cell < cells.length && cell % COLUMNS !== 0 && shade(cells[cell]!) === level) continue;
    if (level > 0) yield { first, end: cell, shade: level };
    first = cell;
  }
}

/** The unchanged cells below all others: full rows, and what is in the last one. */
function background(cells: number, top: number): string[] {
  const rows = Math.floor(cells / COLUMNS);
  const rest = cells % COLUMNS;
  const rect = (y: number, columns: number, height: number) =>
    `<rect x="${MARGIN}" y="${y}" width="${columns * CELL}" height="${height}" fill="${COLOURS[0]}"/>`;
  return [
    ...(rows > 0 ? [rect(top, COLUMNS, rows * CELL)] : []),
    ...(rest > 0 ? [rect(top + rows * CELL, rest, CELL)] : []),
  ];
}

function drawDisk(disk: SvgDisk, top: number): { lines: string[]; bottom: number } {
  const { cells } = disk.map;
  const mapTop = top + 2 * LINE;
  const lines = [
    text(MARGIN, top + LINE - 4, disk.title, ' font-weight="bold"'),
    text(MARGIN, top + 2 * LINE - 8, disk.scale, ' fill="#555"'),
    ...background(cells.length, mapTop),
  ];
  for (const run of runs(disk.map)) {
    const x = MARGIN + (run.first % COLUMNS) * CELL;
    const y = mapTop + Math.floor(run.first / COLUMNS) * CELL;
    const width = (run.end - run.first) * CELL;
    const title = escapeXml(disk.describe(run.first, run.end));
    lines.push(
      `<rect x="${x}" y="${y}" width="${width}" height="${CELL}" fill="${COLOURS[run.shade]}"><title>${title}</title></rect>`,
    );
  }
  return { lines, bottom: mapTop + Math.ceil(cells.length / COLUMNS) * CELL + MARGIN };
}

function drawLegend(top: number): string[] {
  return LEGEND.flatMap((label, level) => {
    const x = MARGIN + level * 152;
    return [
      `<rect x="${x}" y="${top}" width="12" height="12" fill="${COLOURS[level]}" stroke="#999"/>`,
      text(x + 18, top + 11, label),
    ];
  });
}

/** A picture of disks as maps, row by row from the beginning of the disk, changed parts coloured. */
export function svgMap(heading: string, disks: readonly SvgDisk[]): string {
  const body = [text(MARGIN, MARGIN + 12, heading, ' font-size="15"'), ...drawLegend(MARGIN + LINE + 4)];
  let top = MARGIN + 3 * LINE;
  for (const disk of disks) {
    const { lines, bottom } = drawDisk(disk, top);
    body.push(...lines);
    top = bottom;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${top}" viewBox="0 0 ${WIDTH} ${top}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${top}" fill="#fff"/>`,
    ...body,
    '</svg>',
    '',
  ].join('\n');
}
