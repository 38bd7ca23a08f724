// A point cloud that turns under the hand: WebGL 2, eye-dome lighting, thick lines on top.
"use strict";

const CloudView = (() => {
  const POINT_VERTEX = `#version 300 es
    in vec3 position; in vec4 color;
    uniform mat4 view, projection; uniform vec3 low, size; uniform float reach, ceiling;
    uniform int tint; uniform vec2 heights;
    out vec3 shade;
    vec3 ramp(float t) {
      t = clamp(t, 0.0, 1.0);
      return clamp(vec3(1.5) - abs(4.0 * vec3(t) - vec3(3.0, 2.0, 1.0)), 0.0, 1.0) * 0.85 + 0.1;
    }
    void main() {
      vec3 world = low + position * size;
      vec4 seen = view * vec4(world, 1.0);
      gl_Position = projection * seen;
      gl_PointSize = clamp(reach / max(-seen.z, 1e-6), 1.2, 24.0);
      if (world.z > ceiling) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
      shade = color.rgb;
      if (tint == 1) shade = ramp((world.z - heights.x) / max(heights.y - heights.x, 1e-9));
      if (tint == 2) shade = mix(vec3(0.25, 0.1, 0.4), vec3(1.0, 0.9, 0.35), color.a);
    }`;
  const POINT_FRAGMENT = `#version 300 es
    precision highp float; in vec3 shade; out vec4 result;
    void main() {
      vec2 p = gl_PointCoord * 2.0 - 1.0;
      if (dot(p, p) > 1.0) discard;
      result = vec4(shade, 1.0);
    }`;
  const SCREEN_VERTEX = `#version 300 es
    out vec2 at;
    void main() {
      at = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0;
      gl_Position = vec4(at * 2.0 - 1.0, 0.0, 1.0);
    }`;
  // Eye-dome lighting: what lies behind its neighbours on the screen is darkened.
  const SCREEN_FRAGMENT = `#version 300 es
    precision highp float; in vec2 at; out vec4 result;
    uniform sampler2D colors; uniform highp sampler2D depths; uniform vec2 pixel, range;
    float logDepth(vec2 p) {
      float d = texture(depths, p).r;
      if (d >= 1.0) return 1e3;
      float z = range.x * range.y / (range.y - d * (range.y - range.x));
      return log2(z);
    }
    void main() {
      vec4 c = texture(colors, at);
      float here = logDepth(at);
      if (here > 1e2) { result = vec4(0.0); return; }
      float behind = 0.0;
      for (int i = 0; i < 8; i++) {
        float a = float(i) * 0.7853982;
        float there = logDepth(at + 1.6 * pixel * vec2(cos(a), sin(a)));
        behind += clamp(here - there - 0.012, 0.0, 0.1);
      }
      result = vec4(c.rgb * exp(-1.2 * behind), 1.0);
    }`;
  const LINE_VERTEX = `#version 300 es
    in vec3 first, second; in vec4 color;
    uniform mat4 view, projection; uniform vec2 pixel; uniform float width;
    out vec4 shade;
    void main() {
      vec4 a = projection * view * vec4(first, 1.0), b = projection * view * vec4(second, 1.0);
      float near = 1e-4;
      if (a.w < near && b.w < near) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
      if (a.w < near) a = mix(b, a, (b.w - near) / (b.w - a.w));
      if (b.w < near) b = mix(a, b, (a.w - near) / (a.w - b.w));
      vec2 along = (b.xy / b.w - a.xy / a.w) / pixel;
      float len = length(along);
      vec2 side = len > 1e-6 ? vec2(-along.y, along.x) / len : vec2(0.0, 1.0);
      vec4 end = (gl_VertexID & 1) == 0 ? a : b;
      float sign = (gl_VertexID & 2) == 0 ? 1.0 : -1.0;
      vec2 cap = (len > 1e-6 ? along / len : vec2(1.0, 0.0)) * ((gl_VertexID & 1) == 0 ? -0.5 : 0.5);
      end.xy += (side * sign + cap) * width * pixel * end.w;
      end.z = -end.w;
      gl_Position = end;
      shade = color;
    }`;
  const LINE_FRAGMENT = `#version 300 es
    precision mediump float; in vec4 shade; out vec4 result;
    void main() { result = vec4(shade.rgb * shade.a, shade.a); }`;

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  const subtract = (a, b) => a.map((v, i) => v - b[i]);
  const cross = (a, b) => [
    a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const unit = (a) => { const n = Math.hypot(...a) || 1; return a.map((v) => v / n); };

  function lookAt(eye, target) {
    const back = unit(subtract(eye, target));
    const right = unit(cross([0, 0, 1], back));
    const up = cross(back, right);
    return new Float32Array([
      right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0,
      -dot(right, eye), -dot(up, eye), -dot(back, eye), 1]);
  }

  function perspective(fov, aspect, near, far) {
    const f = 1 / Math.tan(fov / 2);
    return new Float32Array([
      f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (far + near) / (near - far), -1,
      0, 0, (2 * far * near) / (near - far), 0]);
  }

  const rgba = (text, alpha) => {
    const n = parseInt(text.slice(1), 16);
    return [n >> 16, (n >> 8) & 255, n & 255, Math.round(alpha * 255)];
  };

  class CloudView {
    constructor(canvas, data) {
      this.canvas = canvas;
      this.data = data;
      const gl = canvas.getContext("webgl2", { alpha: true, antialias: true, premultipliedAlpha: true });
      if (!gl) throw new Error("this browser has no WebGL 2");
      this.gl = gl;
      this.shown = { cloud: true, path: true, truth: true, cameras: true };
      this.tint = 0;
      this.pointScale = 1;
      this.ceiling = data.ceiling;
      this.time = null;
      this.spinning = false;
      this.points = this.program(POINT_VERTEX, POINT_FRAGMENT);
      this.screen = this.program(SCREEN_VERTEX, SCREEN_FRAGMENT);
      this.lines = this.program(LINE_VERTEX, LINE_FRAGMENT);
      this.buildPoints();
      this.groups = {
        truth: this.buildLines(this.polyline(data.truth, rgba("#9aa4b2", 0.95))),
        cameras: this.buildLines(this.frusta(data.cameras)),
        path: this.buildLines(this.polyline(data.path, rgba("#ff8c1a", 1))),
      };
      this.marker = this.buildLines([]);
      this.blank = gl.createVertexArray();
      this.reset();
      this.listen();
      new ResizeObserver(() => this.draw()).observe(canvas);
    }

    program(vertex, fragment) {
      const gl = this.gl, program = gl.createProgram();
      for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, text);
        gl.compileShader(shader);
        if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS))
          throw new Error(gl.getShaderInfoLog(shader));
        gl.attachShader(program, shader);
      }
      gl.linkProgram(program);
      return program;
    }

    attribute(program, name, size, type, normalized, stride, offset, divisor) {
      const gl = this.gl, at = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, size, type, normalized, stride, offset);
      gl.vertexAttribDivisor(at, divisor);
    }

    buildPoints() {
      const gl = this.gl, cloud = this.data.cloud;
      this.pointArray = gl.createVertexArray();
      gl.bindVertexArray(this.pointArray);
      for (const [name, text, size, type, stride] of [
        ["position", cloud.positions, 3, gl.UNSIGNED_SHORT, 8],
        ["color", cloud.colors, 4, gl.UNSIGNED_BYTE, 4]]) {
        gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
        gl.bufferData(gl.ARRAY_BUFFER, bytes(text), gl.STATIC_DRAW);
        this.attribute(this.points, name, size, type, true, stride, 0, 0);
      }
    }

    buildLines(segments) {
      const gl = this.gl, array = gl.createVertexArray(), buffer = gl.createBuffer();
      gl.bindVertexArray(array);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      this.attribute(this.lines, "first", 3, gl.FLOAT, false, 28, 0, 1);
      this.attribute(this.lines, "second", 3, gl.FLOAT, false, 28, 12, 1);
      this.attribute(this.lines, "color", 4, gl.UNSIGNED_BYTE, true, 28, 24, 1);
      const group = { array, buffer, count: 0 };
      this.fillLines(group, segments);
      return group;
    }

    fillLines(group, segments) {
      const gl = this.gl, block = new ArrayBuffer(28 * segments.length), view = new DataView(block);
      segments.forEach(([a, b, color], i) => {
        [...a, ...b].forEach((v, k) => view.setFloat32(28 * i + 4 * k, v, true));
        color.forEach((v, k) => view.setUint8(28 * i + 24 + k, v));
      });
      gl.bindBuffer(gl.ARRAY_BUFFER, group.buffer);
      gl.bufferData(gl.ARRAY_BUFFER, block, gl.DYNAMIC_DRAW);
      group.count = segments.length;
    }

    polyline(points, color) {
      return points.slice(1).map((p, i) => [points[i], p, color]);
    }

    frusta(cameras, color = rgba("#4c9bff", 0.75), size = this.data.cameraSize) {
      const [w, h] = this.data.frustum;
      return cameras.flatMap(({ position: p, rotation: r }) => {
        const corner = (x, y) => [0, 1, 2].map(
          (k) => p[k] + size * (r[3 * k] * x * w + r[3 * k + 1] * y * h + r[3 * k + 2]));
        const c = [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)];
        return [0, 1, 2, 3].flatMap((i) => [[p, c[i], color], [c[i], c[(i + 1) % 4], color]]);
      });
    }

    reset() {
      // On a narrow screen the width is what the scene must fit into.
      const aspect = this.canvas.clientWidth / Math.max(this.canvas.clientHeight, 1);
      Object.assign(this, {
        azimuth: this.data.azimuth, elevation: 0.62,
        distance: this.data.radius * 1.75 * Math.max(1, 1.15 / aspect),
        target: [...this.data.focus] });
      this.draw();
    }

    // The camera at a time (seconds), or none.
    setTime(seconds) {
      const cameras = this.data.cameras;
      this.time = seconds;
      if (seconds === null || !cameras.length) this.fillLines(this.marker, []);
      else {
        const near = cameras.reduce((a, b) =>
          Math.abs(b.time - seconds) < Math.abs(a.time - seconds) ? b : a);
        this.fillLines(this.marker,
          this.frusta([near], rgba("#ff3b6b", 1), 2.2 * this.data.cameraSize));
      }
      this.draw();
    }

    spin(on) {
      this.spinning = on;
      let last = null;
      const step = (now) => {
        if (!this.spinning) return;
        if (last !== null) this.azimuth += (now - last) * 2.5e-4;
        last = now;
        this.render();
        requestAnimationFrame(step);
      };
      if (on) requestAnimationFrame(step);
      this.canvas.dispatchEvent(new CustomEvent("spin", { detail: on }));
    }

    listen() {
      const canvas = this.canvas, held = new Map();
      const pan = (dx, dy) => {
        const s = this.distance / canvas.clientHeight;
        const [c, n] = [Math.cos(this.azimuth), Math.sin(this.azimuth)];
        const up = Math.sin(this.elevation);
        this.target[0] += s * (n * dx - -c * up * dy);
        this.target[1] += s * (-c * dx - -n * up * dy);
        this.target[2] += s * Math.cos(this.elevation) * dy;
      };
      canvas.addEventListener("pointerdown", (e) => {
        canvas.setPointerCapture(e.pointerId);
        held.set(e.pointerId, [e.clientX, e.clientY]);
        this.spin(false);
      });
      canvas.addEventListener("pointermove", (e) => {
        const last = held.get(e.pointerId);
        if (!last) return;
        const dx = e.clientX - last[0], dy = e.clientY - last[1];
        if (held.size === 2) {
          const other = [...held].find(([id]) => id !== e.pointerId)[1];
          const was = Math.hypot(last[0] - other[0], last[1] - other[1]);
          const is = Math.hypot(e.clientX - other[0], e.clientY - other[1]);
          this.zoom(was / Math.max(is, 1));
          pan(dx / 2, dy / 2);
        } else if (e.shiftKey || e.buttons === 2) pan(dx, dy);
        else this.turn(-dx * 0.006, dy * 0.006);
        held.set(e.pointerId, [e.clientX, e.clientY]);
        this.draw();
      });
      for (const name of ["pointerup", "pointercancel"])
        canvas.addEventListener(name, (e) => held.delete(e.pointerId));
      canvas.addEventListener("contextmenu", (e) => e.preventDefault());
      canvas.addEventListener("dblclick", () => this.reset());
      canvas.addEventListener("wheel", (e) => {
        e.preventDefault();
        this.zoom(Math.exp(e.deltaY * 0.0012));
      }, { passive: false });
      canvas.addEventListener("keydown", (e) => {
        const act = {
          ArrowLeft: () => this.turn(-0.08, 0), ArrowRight: () => this.turn(0.08, 0),
          ArrowUp: () => this.turn(0, 0.06), ArrowDown: () => this.turn(0, -0.06),
          "+": () => this.zoom(0.9), "-": () => this.zoom(1.1), "0": () => this.reset(),
        }[e.key];
        if (!act) return;
        e.preventDefault();
        this.spin(false);
        act();
        this.draw();
      });
    }

    turn(right, up) {
      this.azimuth += right;
      this.elevation = Math.min(1.55, Math.max(-1.2, this.elevation + up));
    }

    zoom(factor) {
      const r = this.data.radius;
      this.distance = Math.min(12 * r, Math.max(0.02 * r, this.distance * factor));
      this.draw();
    }

    draw() {
      if (this.pending) return;
      this.pending = true;
      requestAnimationFrame(() => { this.pending = false; this.render(); });
    }

    resize() {
      const gl = this.gl, canvas = this.canvas, ratio = Math.min(devicePixelRatio || 1, 2);
      const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
      const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
      if (this.width === width && this.height === height) return;
      [this.width, this.height] = [canvas.width, canvas.height] = [width, height];
      for (const name of ["colors", "depths"]) gl.deleteTexture(this[name] || null);
      const texture = (inner, format, type) => {
        const made = gl.createTexture();
        gl.bindTexture(gl.TEXTURE_2D, made);
        gl.texImage2D(gl.TEXTURE_2D, 0, inner, width, height, 0, format, type, null);
        for (const [k, v] of [
          [gl.TEXTURE_MIN_FILTER, gl.NEAREST], [gl.TEXTURE_MAG_FILTER, gl.NEAREST],
          [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE], [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE]])
          gl.texParameteri(gl.TEXTURE_2D, k, v);
        return made;
      };
      this.colors = texture(gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE);
      this.depths = texture(gl.DEPTH_COMPONENT24, gl.DEPTH_COMPONENT, gl.UNSIGNED_INT);
      this.target2d = this.target2d || gl.createFramebuffer();
      gl.bindFramebuffer(gl.FRAMEBUFFER, this.target2d);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.colors, 0);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.TEXTURE_2D, this.depths, 0);
    }

    uniforms(program, values) {
      const gl = this.gl;
      gl.useProgram(program);
      for (const [name, value] of Object.entries(values)) {
        const at = gl.getUniformLocation(program, name);
        if (value.length === 16) gl.uniformMatrix4fv(at, false, value);
        else if (value.length) gl["uniform" + value.length + "fv"](at, value);
        else if (value.integer !== undefined) gl.uniform1i(at, value.integer);
        else gl.uniform1f(at, value);
      }
    }

    render() {
      const gl = this.gl, data = this.data;
      this.resize();
      const flat = this.distance * Math.cos(this.elevation);
      const eye = [
        this.target[0] + flat * Math.cos(this.azimuth), this.target[1] + flat * Math.sin(this.azimuth),
        this.target[2] + this.distance * Math.sin(this.elevation)];
      const view = lookAt(eye, this.target);
      const near = this.distance * 0.01 + 1e-6, far = this.distance + 20 * data.radius;
      const fov = 0.8, projection = perspective(fov, this.width / this.height, near, far);
      const focal = this.height / (2 * Math.tan(fov / 2));
      gl.bindFramebuffer(gl.FRAMEBUFFER, this.target2d);
      gl.viewport(0, 0, this.width, this.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.enable(gl.DEPTH_TEST);
      gl.disable(gl.BLEND);
      if (this.shown.cloud) {
        this.uniforms(this.points, {
          view, projection, low: data.cloud.low, size: data.cloud.size,
          reach: 1.25 * data.cloud.spacing * focal * this.pointScale, ceiling: this.ceiling,
          tint: { integer: this.tint }, heights: data.cloud.heights });
        gl.bindVertexArray(this.pointArray);
        gl.drawArrays(gl.POINTS, 0, data.cloud.count);
      }
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.viewport(0, 0, this.width, this.height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.disable(gl.DEPTH_TEST);
      const pixel = [1 / this.width, 1 / this.height];
      this.uniforms(this.screen, {
        colors: { integer: 0 }, depths: { integer: 1 }, pixel, range: [near, far] });
      gl.activeTexture(gl.TEXTURE1);
      gl.bindTexture(gl.TEXTURE_2D, this.depths);
      gl.activeTexture(gl.TEXTURE0);
      gl.bindTexture(gl.TEXTURE_2D, this.colors);
      gl.bindVertexArray(this.blank);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 3);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      const ratio = Math.min(devicePixelRatio || 1, 2);
      for (const [group, width, on] of [
        [this.groups.truth, 1.6, this.shown.truth], [this.groups.cameras, 0.9, this.shown.cameras],
        [this.groups.path, 2.4, this.shown.path], [this.marker, 2, true]]) {
        if (!on || !group.count) continue;
        this.uniforms(this.lines, { view, projection, pixel, width: width * ratio });
        gl.bindVertexArray(group.array);
        gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, group.count);
      }
      this.canvas.dataset.azimuth = this.azimuth.toFixed(4);
      this.canvas.dataset.distance = this.distance.toPrecision(5);
      this.canvas.dataset.ready = "true";
    }
  }
  return CloudView;
})();
