"""Logs: the stream, live and again, and the file."""

from concurrent.futures import ThreadPoolExecutor

from harness import Client, refused


def test_stream_is_live_and_ends_with_the_job(ada: Client):
    job = ada.job(input_2=60).start()
    with job.log_stream() as items:
        assert next(items)
        assert job.inspect().stopped_at is None, "the first line came while the job runs"
        job.stop()
        list(items)
    job.until("ABORTED", seconds=5)


def test_two_readers_at_once_and_one_afterwards_see_the_same(ada: Client):
    job = ada.job(input_2=2).start()
    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(job.read_log_stream) for _ in range(2)]
        first, second = (reader.result(60) for reader in readers)
    job.until("SUCCESS", seconds=5)
    assert first == second == job.read_log_stream()
    messages = [message for item in first for message in item["messages"]]
    progress = [message for message in messages if message.startswith("[PROGRESS]")]
    assert progress and len(set(progress)) == len(progress), "each line once, without its timestamp"
    text = job.log_file()[1]
    assert all(message in text for message in progress)


def test_levels(ada: Client, shell: str, tmp_path):
    script = ada.upload(tmp_path, "script.sh", "echo plain; echo WARNING: hot; echo '[error] burnt' >&2; echo; touch /outputs/seen.txt")
    job = ada.job(shell, "1.0.0", script=script)
    job.run()
    levels = {message: item["log_level"] for item in job.read_log_stream() for message in item["messages"]}
    assert {"plain": 20, "WARNING: hot": 30, "[error] burnt": 40}.items() <= levels.items()


def test_lines_in_the_file_have_timestamps(ada: Client):
    job = ada.job(input_2=0)
    job.run()
    lines = job.log_lines()
    assert lines and all(line[:2] == "20" and "T" in line.split(" ")[0] for line in lines), lines


def test_stream_of_a_deleted_job(ada: Client):
    job = ada.job()
    ada.solvers.delete_job(*job.at)
    response = ada.http.get(job.path("/logstream"))
    assert response.status_code == 404
    with refused(404):
        job.log_file()
