/** A device, as the kernel numbers it. */
export interface DeviceNumber {
  readonly major: number;
  readonly minor: number;
}

/** Splits st_dev or st_rdev of stat(2) as gnu_dev_major and gnu_dev_minor of glibc's sysmacros.h do. */
export function deviceNumber(device: bigint): DeviceNumber {
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n);
  const minor = (device & 0xffn) | ((device >> 12n) & 0xffffff00n);
  return { major: Number(major), minor: Number(minor) };
}

/** `MAJOR:MINOR`, as /sys/dev and /proc/PID/mountinfo have it. */
export function deviceText(device: bigint): string {
  const { major, minor } = deviceNumber(device);
  return `${major}:${minor}`;
}
