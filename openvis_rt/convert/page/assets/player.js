// The page itself: draws the frame that the clock shows, and listens to the user.

facts.tracks.forEach((track, place) => { track.place = place; });
const state = { frame: 0, chosen: -1, over: -1, masks: true, labels: true };
const screen_ = element("screen"), canvas = element("canvas"), context = canvas.getContext("2d");
let visible = new Set(facts.tracks); // tracks that pass the filters
let rows = [];
let clock;

document.documentElement.style.setProperty("--shape", `${facts.width} / ${facts.height}`);

function draw() {
  const { width, height } = canvas;
  const found = instancesOf(state.frame);
  if (found === null) return; // drawn when the part is there
  const instances = found.filter(([place, , score]) =>
    visible.has(facts.tracks[place]) && score >= filters.score);
  context.clearRect(0, 0, width, height);
  const focus = state.chosen >= 0 ? state.chosen : state.over;
  const boxes = paintMasks(instances, focus);
  const scale = [width / facts.width * facts.step, height / facts.height * facts.step];
  if (state.masks) {
    context.drawImage(maskCanvas, 0, 0, maskWidth * scale[0], maskHeight * scale[1]);
  }
  if (state.labels) drawLabels(instances, boxes, scale, focus);
  markRows(instances);
  document.body.dataset.frame = state.frame;
  document.body.dataset.instances = instances.length;
}

function drawLabels(instances, boxes, scale, focus) {
  const dense = window.devicePixelRatio || 1, size = 12.5 * dense, pad = 5 * dense;
  const taken = [];
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  instances.forEach(([place, name, score], index) => {
    const track = facts.tracks[place], [left, top, right, bottom] = boxes[index];
    if (right <= left || bottom <= top) return;
    if (focus >= 0 && focus !== place && state.chosen >= 0) return;
    const short = [...facts.names[name].split(",")[0]].slice(0, 40).join("");
    const text = `${short}  #${track.id}  ${(score / 1000).toFixed(2)}`;
    const wide = context.measureText(text).width + 2 * pad, high = size * 1.6;
    const x = Math.max(0, Math.min(left * scale[0], canvas.width - wide));
    const y = freePlace(taken, x, Math.max(0, top * scale[1] - high - 2 * dense), wide, high);
    taken.push([x, y, x + wide, y + high]);
    context.fillStyle = track.color;
    context.beginPath();
    context.roundRect(x, y, wide, high, 4 * dense);
    context.fill();
    context.fillStyle = isBright(track.color) ? "#000" : "#fff";
    context.fillText(text, x + pad, y + high / 2);
  });
}

// The nearest place down from y that no earlier label takes; y itself if there is none.
function freePlace(taken, x, y, wide, high) {
  for (let tried = y; tried + high <= canvas.height; tried += high / 3) {
    if (!taken.some(([x0, y0, x1, y1]) =>
      x < x1 && x0 < x + wide && tried < y1 && y0 < tried + high)) return tried;
  }
  return y;
}

function isBright(color) {
  const rgb = parseInt(color.slice(1), 16);
  return 0.299 * (rgb >> 16) + 0.587 * ((rgb >> 8) & 255) + 0.114 * (rgb & 255) > 130;
}

let here = new Map(); // place of a track -> its score in this frame
function markRows(instances) {
  const now = new Map(instances.map(([place, , score]) => [place, score]));
  for (const place of here.keys()) {
    if (now.has(place)) continue;
    rows[place].row.classList.remove("here");
    rows[place].figure.textContent = (facts.tracks[place].score / 1000).toFixed(2);
  }
  for (const [place, score] of now) {
    if (here.get(place) === score) continue;
    rows[place].row.classList.add("here");
    rows[place].figure.textContent = (score / 1000).toFixed(2);
  }
  here = now;
}

function show(frame) {
  state.frame = frame;
  element("where").replaceChildren(clockText(times[frame]),
    made("small", "", `frame ${frame} / ${lastFrame}`));
  element("tracks").style.setProperty("--at", (frame + 0.5) / (lastFrame + 1));
  element("ruler").setAttribute("aria-valuenow", frame);
  element("ruler").setAttribute("aria-valuetext", `${clockText(times[frame])}, frame ${frame}`);
  draw();
}

function seek(frame) { clock.go(Math.max(0, Math.min(lastFrame, frame))); }
// From the frame that was asked for last: keys come faster than a browser decodes.
function step(by) {
  clock.pause();
  seek((clock.target ?? state.frame) + by);
}
function toggle() { if (clock.playing) clock.pause(); else clock.play(); }

function firstOf(track) { return track.spans[0][0]; }
function lastOf(track) { const [start, count] = track.spans.at(-1); return start + count - 1; }

// The first frame from this one on that shows the track or, if there is none, its last one.
function nextOf(track, frame) {
  const span = track.spans.find(([start, count]) => frame < start + count);
  return span ? Math.max(frame, span[0]) : lastOf(track);
}

// Choose a track or, with -1, none; shows it where it is not seen now, unless told to stay.
function choose(place, stays) {
  if (state.chosen >= 0) rows[state.chosen].row.classList.remove("chosen");
  state.chosen = place;
  if (place >= 0) {
    const { row } = rows[place], track = facts.tracks[place];
    row.classList.add("chosen");
    row.scrollIntoView({ block: "nearest" });
    const next = nextOf(track, state.frame);
    if (!stays && next !== state.frame) { clock.pause(); seek(next); }
  }
  draw();
}

function pick(place, stays) { choose(!stays && place === state.chosen ? -1 : place, stays); }

function chooseNext(by) {
  const shown = facts.tracks.filter((track) => visible.has(track));
  if (!shown.length) return;
  const at = shown.findIndex((track) => track.place === state.chosen);
  const next = at < 0 ? (by > 0 ? 0 : shown.length - 1) : at + by;
  if (shown[next]) choose(shown[next].place);
}

function refilter() {
  visible = new Set(facts.tracks.filter(passes));
  facts.tracks.forEach((track) => { rows[track.place].row.hidden = !visible.has(track); });
  const all = facts.tracks.length, count = visible.size;
  element("shown").textContent = count === all ? `${all} ${all === 1 ? "track" : "tracks"}`
    : `${count} of ${all} tracks`;
  element("nothing").hidden = count > 0;
  element("nothing").textContent = all ? "No track passes these filters."
    : "No object was found in this video.";
  element("reset").hidden = !isFiltered();
  if (state.chosen >= 0 && !visible.has(facts.tracks[state.chosen])) choose(-1);
  draw();
  fitPlayhead();
}

function fitPlayhead() {
  element("playhead").style.height =
    `${element("ruler-row").offsetHeight + element("rows").offsetHeight - 20}px`;
}

function fit() {
  const dense = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * dense));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * dense));
  drawRuler(element("ruler"));
  fitPlayhead();
  draw();
}

// The place of the track at a point of the screen; -1 where there is none.
function trackAt(event) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * facts.width / facts.step);
  const y = Math.floor((event.clientY - box.top) / box.height * facts.height / facts.step);
  return x >= 0 && y >= 0 && x < maskWidth && y < maskHeight ? owners[y * maskWidth + x] - 1 : -1;
}

function watchPointer() {
  canvas.addEventListener("click", (event) => {
    const place = trackAt(event);
    if (place < 0 && state.chosen < 0) toggle(); else choose(place === state.chosen ? -1 : place, true);
  });
  canvas.addEventListener("pointermove", (event) => {
    const over = event.pointerType === "mouse" ? trackAt(event) : -1;
    if (over === state.over) return;
    state.over = over;
    screen_.classList.toggle("hit", over >= 0);
    draw();
  });
  canvas.addEventListener("pointerleave", () => { state.over = -1; draw(); });
  const ruler = element("ruler");
  const drag = (event) => {
    const box = ruler.getBoundingClientRect();
    seek(Math.floor((event.clientX - box.left) / box.width * (lastFrame + 1)));
  };
  ruler.addEventListener("pointerdown", (event) => {
    ruler.setPointerCapture(event.pointerId);
    clock.pause();
    drag(event);
  });
  ruler.addEventListener("pointermove", (event) => {
    if (ruler.hasPointerCapture(event.pointerId)) drag(event);
  });
}

function flip(id) { element(id).click(); }

const KEYS = {
  " ": toggle,
  ArrowLeft: (event) => step(event.shiftKey ? -10 : -1),
  ArrowRight: (event) => step(event.shiftKey ? 10 : 1),
  Home: () => step(-Infinity),
  End: () => step(Infinity),
  ArrowUp: () => chooseNext(-1),
  ArrowDown: () => chooseNext(1),
  "[": () => { if (state.chosen >= 0) { clock.pause(); seek(firstOf(facts.tracks[state.chosen])); } },
  "]": () => { if (state.chosen >= 0) { clock.pause(); seek(lastOf(facts.tracks[state.chosen])); } },
  m: () => flip("show-masks"),
  l: () => flip("show-labels"),
  "?": () => element("keys").showModal(),
  Escape: () => choose(-1),
};

function watchKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || element("keys").open) return;
    const writes = event.target.matches?.('input[type="search"], input[type="range"]');
    if (writes) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || (event.key === " " && event.target.matches?.("button, input"))) return;
    event.preventDefault();
    act(event);
  });
}

function watchButtons() {
  element("play").addEventListener("click", toggle);
  element("back").addEventListener("click", () => step(-1));
  element("forth").addEventListener("click", () => step(1));
  element("help").addEventListener("click", () => element("keys").showModal());
  element("show-masks").addEventListener("change", (e) => { state.masks = e.target.checked; draw(); });
  element("show-labels").addEventListener("change", (e) => { state.labels = e.target.checked; draw(); });
  element("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.style.colorScheme
      ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = dark ? "light" : "dark";
  });
}

function changed() {
  element("play").setAttribute("aria-label", clock.playing ? "Pause" : "Play");
  element("play-shape").setAttribute("d",
    clock.playing ? "M5 3.5h3.6v13H5zM11.4 3.5H15v13h-3.6z" : "M5 3.5v13L16.5 10z");
}

function say(text) {
  element("message").textContent = text;
  element("message").hidden = !text;
}

async function openFilm() {
  const video = element("video");
  clock = new PlainClock(show, changed); // until the video is there, and where it never is
  if (!facts.hasVideo) return;
  say("Opening the video …");
  const film = await filmAddress();
  await new Promise((resolve) => {
    video.addEventListener("loadeddata", () => {
      say("");
      clock = new FilmClock(video, show, changed);
      seek(state.frame);
      resolve();
    }, { once: true });
    video.addEventListener("error", () => {
      say("This browser cannot play H.264 video. The masks are shown without it.");
      resolve();
    });
    video.src = film;
  });
}

async function begin() {
  element("title").textContent = facts.title;
  const length = 2 * middleOf(lastFrame) - times[lastFrame];
  element("about").textContent = [
    `${facts.width} × ${facts.height}`,
    `${lastFrame + 1} frames`,
    `${((lastFrame + 1) / length).toFixed(2).replace(/\.?0+$/, "")} a second`,
  ].join("  ·  ");
  element("ruler").setAttribute("aria-valuemax", lastFrame);
  rows = facts.tracks.map((track) => rowOf(track, pick, seek));
  element("rows").append(...rows.map(({ row }) => row));
  partArrived = draw;
  watchFilters(refilter);
  watchPointer();
  watchKeys();
  watchButtons();
  const filmed = openFilm();
  refilter();
  show(0);
  new ResizeObserver(fit).observe(canvas);
  fit();
  await filmed;
  document.body.dataset.ready = "true";
}
begin();
