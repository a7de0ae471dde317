"use strict";
// The facts of the page, and its masks: parts of run lengths that are opened when they are needed.

const element = (id) => document.getElementById(id);
const facts = JSON.parse(element("facts").textContent);
const times = []; // of every frame, in seconds
facts.steps.reduce((sum, step) => (times.push((sum + step) / 1e6), sum + step), 0);
const lastFrame = times.length - 1;

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

const KEPT_PARTS = 6;
const parts = new Map(); // number -> promise, and once it is there its frames; the newest is last
let partArrived = () => {};

async function openPart(number) {
  const packed = new Blob([bytesOf(element(`masks-${number}`).textContent)]);
  const text = await new Response(
    packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  return JSON.parse(text);
}

function partOf(number) {
  let part = parts.get(number);
  parts.delete(number);
  if (part === undefined) {
    part = { frames: null };
    openPart(number).then((frames) => { part.frames = frames; partArrived(); });
  }
  parts.set(number, part);
  while (parts.size > KEPT_PARTS) parts.delete(parts.keys().next().value);
  return part;
}

// The instances [track, name, score, counts] of a frame, best first; null while they are opened.
function instancesOf(frame) {
  const number = Math.floor(frame / facts.partFrames);
  const place = frame % facts.partFrames;
  const next = number + (place > facts.partFrames / 2 ? 1 : -1);
  if (next >= 0 && next * facts.partFrames <= lastFrame) partOf(next);
  const part = partOf(number);
  return part.frames && part.frames[place];
}

// The run lengths in COCO's text: five bits a letter, low ones first; from the fourth number on, the
// difference to the number two before.
function runsOf(text) {
  const runs = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, letter;
    do {
      letter = text.charCodeAt(at++) - 48;
      value |= (letter & 31) << shift;
      shift += 5;
    } while (letter & 32);
    if (letter & 16) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

const maskWidth = facts.maskWidth, maskHeight = facts.maskHeight;
const owners = new Uint16Array(maskWidth * maskHeight); // place of the track of each pixel, from 1
const maskCanvas = document.createElement("canvas");
maskCanvas.width = maskWidth;
maskCanvas.height = maskHeight;
const maskContext = maskCanvas.getContext("2d");
const maskImage = maskContext.createImageData(maskWidth, maskHeight);
const maskPixels = new Uint32Array(maskImage.data.buffer);
const littleEndian = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

function packedColor(hex, opacity) {
  const rgb = parseInt(hex.slice(1), 16);
  const red = rgb >> 16, green = (rgb >> 8) & 255, blue = rgb & 255;
  return littleEndian
    ? ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0
    : ((red << 24) | (green << 16) | (blue << 8) | opacity) >>> 0;
}
const fills = [0], rims = [0], pale = [0], paleRims = [0]; // by owner
for (const track of facts.tracks) {
  fills.push(packedColor(track.color, 110));
  rims.push(packedColor(track.color, 255));
  pale.push(packedColor(track.color, 35));
  paleRims.push(packedColor(track.color, 110));
}

// Give each pixel of a mask to its track; returns the mask's box [left, top, right, bottom].
function paintRuns(owner, text) {
  const box = [maskWidth, maskHeight, 0, 0];
  let at = 0;
  runsOf(text).forEach((length, index) => {
    if (index % 2 && length) {
      let x = Math.floor(at / maskHeight), y = at - x * maskHeight;
      box[0] = Math.min(box[0], x);
      for (let left = length; left > 0;) {
        const rows = Math.min(left, maskHeight - y);
        for (let row = y, place = y * maskWidth + x; row < y + rows; row++, place += maskWidth) {
          owners[place] = owner;
        }
        box[1] = Math.min(box[1], y);
        box[3] = Math.max(box[3], y + rows);
        box[2] = Math.max(box[2], x + 1);
        left -= rows;
        y = 0;
        x++;
      }
    }
    at += length;
  });
  return box;
}

// Paint the instances into maskCanvas, the best on top; returns their boxes in their order.
function paintMasks(instances, chosen) {
  owners.fill(0);
  const boxes = instances.map(() => null);
  for (let index = instances.length - 1; index >= 0; index--) {
    boxes[index] = paintRuns(instances[index][0] + 1, instances[index][3]);
  }
  let place = 0;
  for (let y = 0; y < maskHeight; y++) {
    for (let x = 0; x < maskWidth; x++, place++) {
      const owner = owners[place];
      if (!owner) { maskPixels[place] = 0; continue; }
      const inner = x > 0 && y > 0 && x < maskWidth - 1 && y < maskHeight - 1
        && owners[place - 1] === owner && owners[place + 1] === owner
        && owners[place - maskWidth] === owner && owners[place + maskWidth] === owner;
      const dim = chosen >= 0 && chosen + 1 !== owner;
      maskPixels[place] = inner ? (dim ? pale : fills)[owner] : (dim ? paleRims : rims)[owner];
    }
  }
  maskContext.putImageData(maskImage, 0, 0);
  return boxes;
}
