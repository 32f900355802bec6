import * as fs from 'node:fs';
import * as v from 'valibot';
import { wasWritten, writeMark } from './image-identity.js';

/** Of a journal entry whose images nobody may write. */
export const imageMarks = {
  images: v.array(v.string()),
  /** What `writeMark` said of each image when that began. */
  marks: v.optional(v.array(v.nullable(v.string()))),
};

const MarkedImages = v.object(imageMarks);

export type MarkedImages = v.InferOutput<typeof MarkedImages>;

/** What was written to a device with `cache=unsafe` reaches it at any later time, and its count of sectors goes up then. */
function flushDevice(file: string): void {
  if (!fs.statSync(file).isBlockDevice()) return;
  const fd = fs.openSync(file, 'r');
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** Notes how the images are now. One that is not there has no mark; whoever reads it will say so. */
export function markImages(images: readonly string[]): MarkedImages {
  const marks = images.map((image) => {
    if (!fs.existsSync(image)) return null;
    flushDevice(image);
    return writeMark(image) ?? null;
  });
  return { images: [...images], marks };
}

/** For each image whether it was written since it was marked, in the boot `boot`; undefined where that cannot be told. */
export function writtenSince(
  { images, marks = [] }: MarkedImages,
  boot: string | undefined,
): (boolean | undefined)[] {
  return images.map((image, index) =>
    fs.existsSync(image) ? wasWritten(marks[index] ?? undefined, writeMark(image), boot) : undefined,
  );
}

/** The images that were written since they were marked, as far as that can be told. */
export function writtenImages(marked: MarkedImages, boot: string | undefined): string[] {
  const written = writtenSince(marked, boot);
  return marked.images.filter((_, index) => written[index] === true);
}
