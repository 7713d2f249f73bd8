// A job from upload to log with the TypeScript client, as compiled. Its folder is the first argument.
import assert from "node:assert/strict";
import { File } from "node:buffer";
import { createHash } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const { Configuration, ErrorCode, FilesApi, JobsApi, ResponseError, RunningState, UserRoleEnum, UsersApi } = await import(
  pathToFileURL(`${process.argv[2]}/index.js`)
);
const [solverKey, version] = ["simcore/services/comp/itis/sleeper", "2.1.6"];
const { SOLVER_URL, SOLVER_KEY, SOLVER_SECRET } = process.env;
const configuration = new Configuration({ basePath: SOLVER_URL, username: SOLVER_KEY, password: SOLVER_SECRET });
const [files, jobs] = [new FilesApi(configuration), new JobsApi(configuration)];
assert.equal((await new UsersApi(configuration).getMyProfile()).role, UserRoleEnum.User);

const content = "1";
const announced = { filename: "seconds.txt", filesize: content.length, sha256Checksum: createHash("sha256").update(content).digest("hex") };
const upload = await files.getUploadLinks({ userFile: announced });
const [link] = upload.uploadSchema.urls;
const sent = await fetch(link, { method: "PUT", body: content });
const part = { number: 1, eTag: sent.headers.get("etag").replaceAll('"', "") };
const completeUpload = { clientFile: announced, uploadedParts: { parts: [part] } };
const file = await files.completeMultipartUpload({ fileId: upload.fileId, completeUpload });
assert.equal((await files.searchFilesPage({ sha256Checksum: file.checksum })).total, 1);
assert.equal(await (await files.downloadFile({ fileId: file.id })).text(), content);
const whole = await files.uploadFile({ file: new File([content], "whole.txt") });
assert.deepEqual([whole.filename, whole.checksum], ["whole.txt", file.checksum]);

const jobInputs = { values: { input_1: file, input_2: 0, input_3: false, input_4: null } };
const job = await jobs.createSolverJob({ solverKey, version, jobInputs, hidden: false });
const at = { solverKey, version, jobId: job.id };
const metadata = { mesh: 3, name: "ü" };
await jobs.replaceJobCustomMetadata({ ...at, jobMetadataUpdate: { metadata } });
assert.deepEqual((await jobs.getJobCustomMetadata(at)).metadata, metadata);
const early = await jobs.getJobOutputs(at).catch((error) => error);
assert(early instanceof ResponseError && early.response.status === 409, early);
assert.equal((await early.response.json()).code, ErrorCode.NoOutputs);

let status = await jobs.startJob(at);
for (const deadline = Date.now() + 60_000; status.stoppedAt == null && Date.now() < deadline; ) {
  await pause(100);
  status = await jobs.inspectJob(at);
}
assert.equal(status.state, RunningState.Success);
const { results } = await jobs.getJobOutputs(at);
const number = await (await files.downloadFile({ fileId: results.output_1.id })).text();
assert.equal(Number(number), results.output_2);
const lines = (await (await jobs.getLogStream(at)).text()).trimEnd().split("\n");
assert.equal(JSON.parse(lines[0]).job_id, job.id);
const zip = await (await jobs.getJobOutputLogfile(at)).text();
assert(zip.startsWith("PK"));
await jobs.deleteJob(at);
console.log("done");
