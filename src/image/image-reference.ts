/** An image file, block device or NBD export, and the format to read it in, which never comes from its content. */
export interface ImageReference {
  /** Absolute. */
  readonly path: string;
  /** QEMU's name of the format driver: `raw`, `qcow2`, `vmdk`, … */
  readonly format: string;
  /** True: a paused VM has it open for writing, and QEMU's locks, which say so, are to be passed over. */
  readonly inUse?: boolean | undefined;
  /** What it lies on, top first, as whoever has it open was told; undefined: nothing was said, and its header is to be believed. */
  readonly below?: readonly { readonly path: string; readonly format: string }[] | undefined;
  /** Name of an NBD export: `path` is the socket of its server then, and the format raw. */
  readonly nbdExport?: string | undefined;
}
