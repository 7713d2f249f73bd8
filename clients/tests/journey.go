// A job from upload to log with the Go client.
package main

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"solverd"
)

const (
	solver  = "simcore/services/comp/itis/sleeper"
	version = "2.1.6"
)

func check(err error) {
	var api *solverd.GenericOpenAPIError
	if errors.As(err, &api) {
		log.Fatalf("%v: %s", err, api.Body())
	} else if err != nil {
		log.Fatal(err)
	}
}

func must[T any](value T, _ *http.Response, err error) T {
	check(err)
	return value
}

func demand(holds bool, seen any) {
	if !holds {
		log.Panicf("%v", seen)
	}
}

func read(file *os.File) []byte {
	content, err := io.ReadAll(file)
	check(err)
	return content
}

func main() {
	configuration := solverd.NewConfiguration()
	configuration.Servers = solverd.ServerConfigurations{{URL: os.Getenv("SOLVER_URL")}}
	client := solverd.NewAPIClient(configuration)
	ctx := context.WithValue(context.Background(), solverd.ContextBasicAuth,
		solverd.BasicAuth{UserName: os.Getenv("SOLVER_KEY"), Password: os.Getenv("SOLVER_SECRET")})
	files, jobs := client.FilesAPI, client.JobsAPI
	demand(must(client.UsersAPI.GetMyProfile(ctx).Execute()).Role == solverd.USER, "role")

	content := []byte("1")
	sum := sha256.Sum256(content)
	announced := solverd.NewUserFile("seconds.txt", int64(len(content)), hex.EncodeToString(sum[:]))
	upload := must(files.GetUploadLinks(ctx).UserFile(*announced).Execute())
	put, err := http.NewRequest(http.MethodPut, upload.UploadSchema.Urls[0], bytes.NewReader(content))
	check(err)
	sent, err := http.DefaultClient.Do(put)
	check(err)
	part := solverd.NewUploadedPart(strings.Trim(sent.Header.Get("ETag"), `"`), 1)
	complete := solverd.NewCompleteUpload(*announced, *solverd.NewFileUploadCompletionBody([]solverd.UploadedPart{*part}))
	file := must(files.CompleteMultipartUpload(ctx, upload.FileId).CompleteUpload(*complete).Execute())
	demand(must(files.SearchFilesPage(ctx).Sha256Checksum(file.GetChecksum()).Execute()).Total == 1, "total")
	demand(bytes.Equal(read(must(files.DownloadFile(ctx, file.Id).Execute())), content), "content")
	folder, err := os.MkdirTemp("", "journey")
	check(err)
	defer os.RemoveAll(folder)
	check(os.WriteFile(folder+"/whole.txt", content, 0o600))
	opened, err := os.Open(folder + "/whole.txt")
	check(err)
	whole := must(files.UploadFile(ctx).File(opened).Execute())
	demand(whole.Filename == "whole.txt" && whole.GetChecksum() == file.GetChecksum(), whole)

	inputs := solverd.NewJobInputs(map[string]interface{}{"input_1": file, "input_2": 0, "input_3": false, "input_4": nil})
	job := must(jobs.CreateSolverJob(ctx, solver, version).JobInputs(*inputs).Hidden(false).Execute())
	mesh, name := 3.0, "ü"
	notes := solverd.NewJobMetadataUpdate()
	notes.SetMetadata(map[string]solverd.MetaValueType{"mesh": {Float64: &mesh}, "name": {String: &name}})
	must(jobs.ReplaceJobCustomMetadata(ctx, solver, version, job.Id).JobMetadataUpdate(*notes).Execute())
	kept := must(jobs.GetJobCustomMetadata(ctx, solver, version, job.Id).Execute()).Metadata
	demand(*kept["mesh"].Float64 == mesh && *kept["name"].String == name, kept)
	_, early, err := jobs.GetJobOutputs(ctx, solver, version, job.Id).Execute()
	var refused *solverd.GenericOpenAPIError
	demand(early.StatusCode == http.StatusConflict && errors.As(err, &refused), err)
	demand(refused.Model().(solverd.ErrorGet).Code == solverd.NO_OUTPUTS, refused.Body())

	status := must(jobs.StartJob(ctx, solver, version, job.Id).Execute())
	for deadline := time.Now().Add(time.Minute); !status.StoppedAt.IsSet() || status.StoppedAt.Get() == nil; {
		demand(time.Now().Before(deadline), status.State)
		time.Sleep(100 * time.Millisecond)
		status = must(jobs.InspectJob(ctx, solver, version, job.Id).Execute())
	}
	demand(status.State == solverd.SUCCESS, status.Errors)
	results := must(jobs.GetJobOutputs(ctx, solver, version, job.Id).Execute()).Results
	output := results["output_1"].(map[string]interface{})
	number := string(read(must(files.DownloadFile(ctx, output["id"].(string)).Execute())))
	demand(strings.TrimSpace(number) == fmt.Sprint(results["output_2"]), results)
	stream := read(must(jobs.GetLogStream(ctx, solver, version, job.Id).Execute()))
	var line solverd.JobLog
	check(json.Unmarshal(bytes.SplitN(stream, []byte("\n"), 2)[0], &line))
	demand(line.JobId == job.Id, line)
	packed := read(must(jobs.GetJobOutputLogfile(ctx, solver, version, job.Id).Execute()))
	archive, err := zip.NewReader(bytes.NewReader(packed), int64(len(packed)))
	check(err)
	demand(len(archive.File) == 1 && strings.Contains(archive.File[0].Name, ".log"), archive.File[0].Name)
	_, err = jobs.DeleteJob(ctx, solver, version, job.Id).Execute()
	check(err)
	fmt.Println("done")
}
