// A row for each track: its name, when it is seen, and how high it scores.

const SVG = "http://www.w3.org/2000/svg";

function made(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function shapeOf(name, path, width, height) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const shape = document.createElementNS(SVG, "path");
  shape.setAttribute("class", name);
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

function laneOf(track) {
  const lane = made("div", "lane");
  const frames = lastFrame + 1, bins = track.bins.length;
  // no span is thinner than a thousandth of the lane, or it could not be seen
  const least = Math.ceil(frames / 1000);
  const seen = track.spans.map(([start, count]) => {
    const wide = Math.max(count, least);
    return `M${start} 0h${wide}v1h-${wide}z`;
  }).join("");
  const high = track.bins.map((score, bin) =>
    score ? `M${bin} 100v-${score}h1v${score}z` : "").join("");
  const scores = shapeOf("high", high, bins, 100);
  const clip = document.createElementNS(SVG, "clipPath"), cut = document.createElementNS(SVG, "path");
  clip.id = `seen-${track.place}`;
  cut.setAttribute("d", seen);
  cut.setAttribute("transform", `scale(${bins / frames} 100)`);
  clip.append(cut);
  scores.lastChild.setAttribute("clip-path", `url(#${clip.id})`);
  scores.prepend(clip);
  lane.append(shapeOf("seen", seen, frames, 1), scores);
  return lane;
}

function rowOf(track, pick, seek) {
  const row = made("div", "row");
  row.style.setProperty("--color", track.color);
  const button = made("button", "pick");
  button.type = "button";
  const name = made("bdi", "name", track.name || "no name");
  name.title = track.name;
  button.append(made("span", "swatch"), name, made("span", "number", `#${track.id}`));
  button.addEventListener("click", () => pick(track.place));
  const lane = laneOf(track);
  lane.addEventListener("click", (event) => {
    const box = lane.getBoundingClientRect();
    pick(track.place, true);
    seek(Math.floor((event.clientX - box.left) / box.width * (lastFrame + 1)));
  });
  const figure = made("span", "figure", (track.score / 1000).toFixed(2));
  row.append(button, lane, figure);
  return { row, figure };
}

// Marks of time above the lanes, as many as there is room for.
function drawRuler(ruler) {
  const length = middleOf(lastFrame), width = ruler.clientWidth;
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
  const step = steps.find((value) => value / length * width > 70) || 7200;
  ruler.replaceChildren();
  for (let mark = 0; mark * step / 5 <= length; mark++) {
    const time = mark * step / 5, at = `${100 * placeOf(time)}%`;
    const line = made("i", mark % 5 ? "" : "long");
    line.style.left = at;
    ruler.append(line);
    if (mark % 5 === 0 && placeOf(time) < 0.97) {
      const text = made("b", "", step < 1 ? clockText(time).slice(0, -1) : clockText(time).slice(0, -3));
      text.style.left = at;
      if (!mark) text.style.translate = "0 0";
      ruler.append(text);
    }
  }
}

// Where a time lies on the lanes, which have the same width for every frame.
function placeOf(time) {
  const frame = frameAt(time);
  const begin = times[frame], end = frame < lastFrame ? times[frame + 1] : 2 * middleOf(frame) - begin;
  return (frame + Math.min(1, Math.max(0, (time - begin) / (end - begin)))) / (lastFrame + 1);
}
