// Numbers as people read them; sizes as `flexserve ps` writes them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function size(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

export function duration(milliseconds) {
  if (milliseconds < 999.5) {
    return `${milliseconds.toFixed(milliseconds < 9.95 && milliseconds > 0 ? 1 : 0)} ms`;
  }
  return `${(milliseconds / 1000).toFixed(milliseconds < 9995 ? 2 : 1)} s`;
}

export function clock(seconds, { withSeconds = true } = {}) {
  const style = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  return new Date(seconds * 1000).toLocaleTimeString("en-GB", withSeconds ? { ...style, second: "2-digit" } : style);
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
