// What tells which frame is shown: the video, or a clock of its own where there is none.

// The frame that is shown at a time in seconds; times are compared with half a millisecond's grace.
function frameAt(time) {
  let low = 0, high = lastFrame;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= time + 0.0005) low = middle; else high = middle - 1;
  }
  return low;
}

// The middle of a frame's time, which is shown as that frame whatever a browser rounds.
function middleOf(frame) {
  const usual = lastFrame ? times[lastFrame] / lastFrame : 0.04;
  return frame < lastFrame ? (times[frame] + times[frame + 1]) / 2 : times[frame] + usual / 2;
}

// The bytes of the video out of the page and into the browser's own keeping.
async function filmAddress() {
  const pieces = [];
  for (const holder of document.querySelectorAll("script.film")) {
    pieces.push(new Blob([bytesOf(holder.textContent)]));
    holder.remove();
    await new Promise((resolve) => setTimeout(resolve));
  }
  return URL.createObjectURL(new Blob(pieces, { type: "video/mp4" }));
}

// A clock calls `shown(frame)` when another frame is to be seen and `changed()` at play and pause.
// Its `target` is the frame that was asked for and is not there yet, or null.
class FilmClock {
  constructor(video, shown, changed) {
    Object.assign(this, { video, target: null, waiting: false });
    const told = () => changed();
    for (const name of ["play", "pause", "ended"]) video.addEventListener(name, told);
    video.addEventListener("seeked", () => this.#seekOn());
    if (video.requestVideoFrameCallback) {
      const next = (_, frame) => {
        this.#tell(frameAt(frame.mediaTime), shown);
        video.requestVideoFrameCallback(next);
      };
      video.requestVideoFrameCallback(next);
    } else {
      const next = () => {
        if (!video.seeking) this.#tell(frameAt(video.currentTime), shown);
        requestAnimationFrame(next);
      };
      requestAnimationFrame(next);
    }
  }
  get playing() { return !this.video.paused && !this.video.ended; }
  play() {
    this.target = null;
    this.video.play().catch(() => {});
  }
  pause() { this.video.pause(); }
  // While a seek is under way the next one waits, so that dragging shows what it passes.
  go(frame) {
    this.target = frame;
    this.waiting = true;
    if (!this.video.seeking) this.#seekOn();
  }
  #seekOn() {
    if (!this.waiting) return;
    this.waiting = false;
    this.video.currentTime = middleOf(this.target);
  }
  #tell(frame, shown) {
    if (frame === this.target) this.target = null;
    shown(frame);
  }
}

class PlainClock {
  constructor(shown, changed) {
    Object.assign(this, { shown, changed, target: null, frame: 0, playing: false });
  }
  play() {
    this.playing = true;
    this.changed();
    const begin = performance.now() - 1000 * times[this.frame];
    const tick = (now) => {
      if (!this.playing) return;
      this.#show(frameAt((now - begin) / 1000));
      if (this.frame === lastFrame) this.pause(); else requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }
  pause() { this.playing = false; this.changed(); }
  go(frame) { this.#show(frame); if (this.playing) { this.playing = false; this.play(); } }
  #show(frame) { this.frame = frame; this.shown(frame); }
}

function clockText(time) {
  const minutes = Math.floor(time / 60), seconds = time - 60 * minutes;
  return `${minutes}:${seconds.toFixed(2).padStart(5, "0")}`;
}
