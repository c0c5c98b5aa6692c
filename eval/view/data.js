// Unpacks blocks of base64 → gzip → JSON. Texts of episodes are unpacked on demand.

const MAX_UNPACKED = 48; // chunks, of about half a million characters each
const store = { index: null, chunks: new Map() };

async function unpack(id) {
  const packed = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

function chunkOf(id) {
  const starts = store.index.starts;
  let low = 0, high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle] <= id) low = middle; else high = middle - 1;
  }
  return low;
}

function chunk(number) {
  const unpacked = store.chunks.get(number) || unpack("chunk-" + number);
  store.chunks.delete(number); // moves it to the end: the first in the map is the least recently used
  store.chunks.set(number, unpacked);
  if (store.chunks.size > MAX_UNPACKED) store.chunks.delete(store.chunks.keys().next().value);
  return unpacked;
}

async function textOf(id) {
  const number = chunkOf(id);
  return (await chunk(number))[id - store.index.starts[number]];
}

